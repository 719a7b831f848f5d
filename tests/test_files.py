"""Atomic files and HDF5 stores: whole or absent, damage is named."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from mlcd.errors import UserError
from mlcd.files import atomic_path, read_json, sha256_json, state_dir, write_json
from mlcd.stores import h5


def test_failure_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"x": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    code = (
        "import sys, time\nfrom mlcd.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as t:\n"
        "    t.write_text('half'); print('writing', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"writing\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert read_json(path) == {"x": 1}


def test_damaged_json_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{")
    with pytest.raises(UserError, match=r"a\.json: not readable as JSON"):
        read_json(path)
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "b.json")


def test_state_depends_on_config_and_inputs(tmp_path):
    output = tmp_path / "x.h5"
    first = state_dir(output, {"k": 1}, "abc")
    assert first == state_dir(output, {"k": 1}, "abc")
    assert len({first, state_dir(output, {"k": 2}, "abc"), state_dir(output, {"k": 1}, "abd")}) == 3
    assert first.parent == tmp_path / "state"


def test_hash_ignores_the_order_of_keys():
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1})


def _write(path, blocks):
    with h5.writing(path, "embeddings", {"chunk": "c"}) as writer:
        for block in blocks:
            writer.append("embedding", block)


def test_h5_bytes_and_fingerprint_do_not_depend_on_the_blocks(tmp_path):
    rows = np.arange(4000 * 64, dtype=np.float16).reshape(4000, 64)
    _write(tmp_path / "a.h5", [rows])
    _write(tmp_path / "b.h5", np.array_split(rows, 7))
    assert h5.fingerprint(tmp_path / "a.h5") == h5.fingerprint(tmp_path / "b.h5")
    with h5.reading(tmp_path / "b.h5", "embeddings") as file:
        np.testing.assert_array_equal(file["embedding"][:], rows)


def test_h5_fingerprint_follows_content_and_attributes(tmp_path):
    rows = np.ones((3, 2), np.float32)
    prints = set()
    for number, (array, chunk) in enumerate(
        [(rows, "a"), (rows * 2, "a"), (rows, "b"), (rows.astype(np.float16), "a")]
    ):
        path = tmp_path / f"{number}.h5"
        h5.write(path, "embeddings", {"embedding": array}, {"chunk": chunk})
        prints.add(h5.fingerprint(path))
    assert len(prints) == 4


def test_h5_damage_is_refused_by_name(tmp_path):
    path = tmp_path / "a.h5"
    rows = np.random.default_rng(0).standard_normal((5000, 64)).astype(np.float32)
    _write(path, [rows])
    data = bytearray(path.read_bytes())
    position = data.find(rows[2500].tobytes())
    assert position > 0
    data[position] ^= 1
    (tmp_path / "flipped.h5").write_bytes(data)
    (tmp_path / "short.h5").write_bytes(path.read_bytes()[: len(data) // 2])
    with (
        pytest.raises(UserError, match=r"flipped\.h5: damaged data"),
        h5.reading(tmp_path / "flipped.h5", "embeddings") as file,
    ):
        file["embedding"][:]
    with (
        pytest.raises(UserError, match=r"short\.h5"),
        h5.reading(tmp_path / "short.h5", "embeddings") as file,
    ):
        file["embedding"][:]
    with (
        pytest.raises(UserError, match="expected a file of labels, found embeddings"),
        h5.reading(path, "labels"),
    ):
        pass

"""Atomic files: whole or absent, damage is named."""

import os
import signal
import subprocess
import sys

import pytest

from mlcd.utils import files
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, read_json, sha256_json, state_dir, write_json


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
        "import sys, time\nfrom mlcd.utils.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as t:\n"
        "    t.write_text('half'); print('writing', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"writing\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert read_json(path) == {"x": 1}
    assert len(list(tmp_path.iterdir())) == 2
    # The next writer of this target clears it away, and nothing else.
    others = [".a.1.tmp.json", ".a.notes.tmp.json", ".b.0123456789ab-1.tmp.json", "a.tmp.json"]
    others.append(f".a.{'0' * 12}-{child.pid}.tmp.json")  # of another host
    for name in others:
        (tmp_path / name).touch()
    with atomic_path(path) as alive:
        alive.touch()
        write_json(tmp_path / "a.h5", {})
        assert alive.exists()
        alive.write_text("{}")
    assert {item.name for item in tmp_path.iterdir()} == {"a.json", "a.h5", *others}


def test_what_a_machine_left_before_its_last_boot_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "machine", lambda: "earlier-boot pid:[1]")
    before = files._machine_tag()
    monkeypatch.setattr(files, "machine", lambda: "this-boot pid:[1]")
    now = files._machine_tag()
    monkeypatch.setattr(files, "machine", lambda: "this-boot pid:[2]")
    container = files._machine_tag()
    monkeypatch.setattr(files, "machine", lambda: "this-boot pid:[1]")
    assert len({before, now, container}) == 3
    names = [f".a.{tag}-{os.getpid()}.tmp.txt" for tag in (before, container)]
    for name in names:
        (tmp_path / name).touch()
    write_json(tmp_path / "a.txt", 1)
    assert {item.name for item in tmp_path.iterdir()} == {"a.txt", names[1]}


@pytest.mark.parametrize("mask", [0o022, 0o007, 0o077])
def test_files_follow_the_umask_whoever_writes_them(tmp_path, mask):
    script = (
        "import os, sys, torch\nfrom pathlib import Path\nfrom safetensors.torch import save_file\n"
        "from mlcd.data import checkpoints, hdf5\nfrom mlcd.utils.files import atomic_path\n"
        f"os.umask({mask})\nfolder = Path(sys.argv[1])\nstate = {{'a': torch.zeros(1)}}\n"
        "with atomic_path(folder / 'a.safetensors') as path:\n    save_file(state, path)\n"
        "checkpoints._save(state, folder / 'b.safetensors')\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True)
    modes = [path.stat().st_mode & 0o777 for path in sorted(tmp_path.iterdir())]
    assert modes == [0o666 & ~mask] * 2


def test_links_are_followed_and_other_things_never_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "a.json").symlink_to(tmp_path / "disk/b.json")
    write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "a.json").is_symlink() and read_json(tmp_path / "disk/b.json", int) == 1
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (
        (tmp_path / "disk", "is a folder"), (tmp_path / "pipe", "a device or the like"),
        (tmp_path / "disk/b.json/c.json", "is a file, not a folder"), ("/dev/null", "a device"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=reason):
            write_json(path, 1)
    assert (tmp_path / "pipe").is_fifo()
    assert files.checked_folder(tmp_path / "disk/new/er") == tmp_path / "disk/new/er"
    for place in (tmp_path / "disk/b.json", tmp_path / "disk/b.json/x", tmp_path / "pipe"):
        with pytest.raises(UserError, match="is a file; name a folder"):
            files.checked_folder(place)


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

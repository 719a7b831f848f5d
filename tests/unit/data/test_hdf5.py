"""HDF5 stores: equal bytes, fingerprints, damage is named."""

import errno

import h5py
import numpy as np
import pytest

from mlcd.data import hdf5
from mlcd.data.embeddings import Embeddings
from mlcd.utils.errors import UserError


def _write(path, blocks):
    with hdf5.writing(path, "embeddings", {"chunk": "c"}) as writer:
        for block in blocks:
            writer.append("embedding", block)


def test_h5_bytes_and_fingerprint_do_not_depend_on_the_blocks(tmp_path):
    rows = np.arange(4000 * 64, dtype=np.float16).reshape(4000, 64)
    _write(tmp_path / "a.h5", [rows])
    _write(tmp_path / "b.h5", np.array_split(rows, 7))
    assert hdf5.fingerprint(tmp_path / "a.h5") == hdf5.fingerprint(tmp_path / "b.h5")
    with hdf5.reading(tmp_path / "b.h5", "embeddings") as file:
        np.testing.assert_array_equal(file["embedding"][:], rows)


def test_h5_fingerprint_follows_content_and_attributes(tmp_path):
    rows = np.ones((3, 2), np.float32)
    prints = set()
    for number, (array, chunk) in enumerate(
        [(rows, "a"), (rows * 2, "a"), (rows, "b"), (rows.astype(np.float16), "a")]
    ):
        path = tmp_path / f"{number}.h5"
        hdf5.write(path, "embeddings", {"embedding": array}, {"chunk": chunk})
        prints.add(hdf5.fingerprint(path))
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
        hdf5.reading(tmp_path / "flipped.h5", "embeddings") as file,
    ):
        file["embedding"][:]
    with (
        pytest.raises(UserError, match=r"short\.h5"),
        hdf5.reading(tmp_path / "short.h5", "embeddings") as file,
    ):
        file["embedding"][:]
    with (
        pytest.raises(UserError, match="expected a file of labels, found embeddings"),
        hdf5.reading(path, "labels"),
    ):
        pass


def test_data_in_other_files_are_refused_unopened(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"root:x:0:0" * 10)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["embedding"] = np.ones((2, 3), np.float32)
    files_ = {}
    for name in ("external", "storage", "virtual", "soft"):
        files_[name] = tmp_path / f"{name}.h5"
    with h5py.File(files_["external"], "w") as file:
        file["embedding"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "embedding")
    with h5py.File(files_["storage"], "w") as file:
        file.create_dataset(
            "embedding", (2, 3), np.float32, external=[(str(secret), 0, h5py.h5f.UNLIMITED)]
        )
    with h5py.File(files_["virtual"], "w") as file:
        layout = h5py.VirtualLayout((2, 3), np.float32)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "embedding", (2, 3))
        file.create_virtual_dataset("embedding", layout)
    with h5py.File(files_["soft"], "w") as file:
        file["embedding"] = h5py.SoftLink("/elsewhere")
    for path in files_.values():
        with pytest.raises(UserError, match=rf"{path.name}: .*'embedding'"):
            Embeddings(path)
        with pytest.raises(UserError, match=path.name), hdf5.reading(path, "x", foreign=True):
            pass


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"\x5a"])
def test_damaged_metadata_is_one_line(tmp_path, fill):
    """HDF5 reports it by errors of many types; whatever it reads, nothing else comes through."""
    _write(tmp_path / "a.h5", [np.ones((3, 2), np.float32)])
    data = (tmp_path / "a.h5").read_bytes()
    refused = 0
    for position in range(0, 2048, 24):
        damaged = data[:position] + fill * 8 + data[position + 8 :]
        (tmp_path / "b.h5").write_bytes(damaged)
        try:
            Embeddings(tmp_path / "b.h5").read()
            hdf5.fingerprint(tmp_path / "b.h5")
        except UserError as error:
            assert str(error).startswith(f"{tmp_path / 'b.h5'}: ")
            refused += 1
    assert refused > 10


def test_a_missing_dataset_is_named(tmp_path):
    hdf5.write(tmp_path / "a.h5", "labels", {"rows": np.ones(3)}, {})
    with (
        pytest.raises(UserError, match=r"a\.h5: damaged data .*label"),
        hdf5.reading(tmp_path / "a.h5", "labels") as file,
    ):
        file["label"][:]


def test_h5_a_full_disk_is_not_the_fault_of_the_file_that_is_read(tmp_path):
    _write(tmp_path / "part.h5", [np.ones((3, 2), np.float32)])
    with (
        pytest.raises(UserError, match=r"out\.h5: no space left on its disk"),
        hdf5.writing(tmp_path / "out.h5", "embeddings", {}),
        hdf5.reading(tmp_path / "part.h5", "embeddings"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")

"""The reader of Fashion-MNIST's idx files."""

from __future__ import annotations

import gzip
import importlib.util
import sys

import numpy as np
import pytest

from helpers.paths import ROOT
from mlcd.utils.errors import UserError


def test_idx_files_are_read_and_others_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "demo"), *sys.path])
    spec = importlib.util.spec_from_file_location(
        "fashion_mnist", ROOT / "demo" / "fashion_mnist.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    levels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    head = b"\0\0\x08\x03" + np.array(levels.shape, ">i4").tobytes()
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(head + levels.tobytes()))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(b"\0\0\x08\x01" + np.array([2], ">i4").tobytes() + bytes([9, 0]))
    )
    assert np.array_equal(module.read_idx(path), levels)
    (first,) = module.items(tmp_path, "train", 0, 1)
    assert (first.key, first.label) == ("train-00000", "ankle boot")
    for bad in (b"", b"\0\0\x08\x03\0", head + levels.tobytes()[1:]):
        path.write_bytes(gzip.compress(bad))
        with pytest.raises(UserError, match="no idx file of bytes"):
            module.read_idx(path)
    path.unlink()
    with pytest.raises(UserError, match="install dataset-fashion-mnist"):
        module.read_idx(path)

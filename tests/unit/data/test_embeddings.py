"""Embedding files: joined to the manifest, our own or foreign, refused where they do not fit."""

import h5py
import numpy as np
import pytest
import torch

from helpers.builders import (
    embeddings_file,
    image_store,
    unit_vectors,
)
from mlcd.data import hdf5
from mlcd.data.embeddings import Embeddings, open_all
from mlcd.data.image_store import ImageStore
from mlcd.utils.errors import UserError


def test_embeddings_join_the_manifest(tmp_path):
    manifest = image_store(tmp_path / "a-00000", 7)
    path = embeddings_file(tmp_path / "a-00000.h5", unit_vectors(7, 8), manifest=manifest)
    with hdf5.reading(path, "embeddings") as file:
        assert file["embedding"].shape == (7, 8)
        assert file.attrs["manifest"] == ImageStore(manifest).fingerprint
        np.testing.assert_array_equal(file["key"][:2], [b"000000000", b"000000001"])


torch.set_num_threads(1)


def test_foreign_embeddings(tmp_path):
    vectors = unit_vectors(10, 8)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["embedding"] = vectors
    foreign = Embeddings(tmp_path / "f.h5")
    assert np.array_equal(foreign.read(2, 5), vectors[2:5])
    assert [(first, len(rows)) for first, rows in foreign.blocks(4)] == [(0, 4), (4, 4), (8, 2)]
    assert foreign.keys(8).tolist() == [b"000000008", b"000000009"]
    assert (foreign.model, len(foreign.fingerprint)) == ({}, 64)
    with pytest.raises(UserError, match=r"f.h5: does not say where its images lie"):
        foreign.places()


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"features": np.zeros((2, 3))}, "expected a dataset 'embedding'"),
        ({"embedding": np.zeros((2, 3))}, "of float16 or float32"),
        ({"embedding": np.zeros(3, np.float32)}, "expected a dataset 'embedding'"),
        ({"embedding": np.zeros((2, 3), np.float32), "tar": np.zeros(3)}, "tar has 3 rows"),
    ],
)
def test_unfit_embeddings(tmp_path, datasets, message):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for name, rows in datasets.items():
            file[name] = rows
    with pytest.raises(UserError, match=message):
        Embeddings(tmp_path / "f.h5")


def test_nan_in_embeddings_is_named(tmp_path):
    vectors = unit_vectors(10, 8)
    vectors[7, 3] = np.nan
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["embedding"] = vectors
    foreign = Embeddings(tmp_path / "f.h5")
    assert len(foreign.read(0, 7)) == 7
    with pytest.raises(UserError, match="row 7 of embedding is not finite"):
        foreign.read(5, 9)


def test_embeddings_of_other_dimension_are_refused(tmp_path):
    for name, d in (("a", 8), ("b", 9)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["embedding"] = unit_vectors(3, d)
    with pytest.raises(UserError, match=r"b.h5: 9 dimensions, but .*a.h5 has 8"):
        open_all([tmp_path / "a.h5", tmp_path / "b.h5"])

"""The builders write what the stores read, offsets included."""

import numpy as np
from builders import embeddings_file, image_store, jpeg, unit_vectors

from mlcd.images import decode
from mlcd.stores import h5
from mlcd.stores.images import ImageStore


def test_offsets_lead_to_the_pictures(tmp_path):
    store = ImageStore(image_store(tmp_path / "a-00000", 7, rows_per_tar=3))
    table = store.table()
    for row in table.itertuples():
        assert store.read(row.tar, row.offset, row.size) == jpeg(row.row)
        assert decode(store.read(row.tar, row.offset, row.size), max_pixels=10**6).size == (48, 48)


def test_embeddings_join_the_manifest(tmp_path):
    manifest = image_store(tmp_path / "a-00000", 7)
    path = embeddings_file(tmp_path / "a-00000.h5", unit_vectors(7, 8), manifest=manifest)
    with h5.reading(path, "embeddings") as file:
        assert file["embedding"].shape == (7, 8)
        assert file.attrs["manifest"] == ImageStore(manifest).fingerprint
        np.testing.assert_array_equal(file["key"][:2], [b"000000000", b"000000001"])

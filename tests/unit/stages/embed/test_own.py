"""Own embeddings become those of a chunk: normalized as ours, bad rows counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.builders import image_store
from mlcd.cli import main
from mlcd.data.embeddings import Embeddings
from mlcd.data.image_store import ImageStore

RNG = np.random.default_rng(1)


def embed(folder: Path, rows: np.ndarray, *options: str) -> int:
    np.save(folder / "e.npy", rows)
    return main(
        ["embed", "--images", str(folder / "images/c-00000"), "--output", str(folder / "e.h5"),
         "--embeddings", str(folder / "e.npy"), *options]
    )  # fmt: skip


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_rows_are_normalized_and_lie_where_their_images_do(scale: float, tmp_path: Path) -> None:
    manifest = image_store(tmp_path / "images/c-00000", 12)
    rows = RNG.standard_normal((12, 6))
    assert embed(tmp_path, rows * scale) == 0
    found = Embeddings(tmp_path / "e.h5")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_array_equal(found.read(), unit.astype(np.float16))
    store, places = ImageStore(manifest), found.places()
    assert found.attributes["manifest"] == store.fingerprint and found.model == {}
    for row, (tar, offset, size, digest) in enumerate(zip(*places, strict=True)):
        # The reader compares the digest.
        assert len(store.read(int(tar), int(offset), int(size), int(digest))) == size, row


def test_rows_without_a_direction_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_store(tmp_path / "images/c-00000", 12)
    rows = RNG.standard_normal((12, 6)).astype(np.float32)
    rows[3], rows[7, 2] = 0, np.nan
    assert embed(tmp_path, rows) == 2
    said = capsys.readouterr().err
    assert "e.npy: 2 of 12 images of chunk c-00000 have no usable row (" in said
    assert embed(tmp_path, rows, "--max-failed", "0.2") == 0
    keys, reasons = Embeddings(tmp_path / "e.h5").failed()
    assert dict(zip(keys.tolist(), reasons.tolist(), strict=True)) == {
        b"000000003": b"zero_embedding", b"000000007": b"not_finite",
    }  # fmt: skip
    assert Embeddings(tmp_path / "e.h5").n == 10


def test_a_key_that_nothing_is_called_by_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pandas as pd

    image_store(tmp_path / "images/c-00000", 4)
    pd.DataFrame({"name": list("abcd")}).to_parquet(tmp_path / "e.parquet")
    assert embed(tmp_path, RNG.standard_normal((4, 6)), "--key", "name") == 2
    assert "(no_embedding 4)" in (said := capsys.readouterr().err)
    assert "check that 'name' holds URLs, paths" in said

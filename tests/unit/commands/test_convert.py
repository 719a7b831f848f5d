"""Embeddings, labels and centers in other programs' forms, and back again as own ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers.train_stores import stores
from mlcd.cli import main
from mlcd.commands import convert
from mlcd.data.centroids import Centroids
from mlcd.data.embeddings import Embeddings
from mlcd.data.labels import Labels


def words(*parts: object) -> list[str]:
    found: list[str] = []
    for part in parts:
        found += map(str, part) if isinstance(part, list) else [str(part)]
    return found


@pytest.mark.parametrize("to", ["npy", "parquet"])
def test_rows_and_what_is_known_of_them(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "_BLOCK", 7)
    paths = stores(tmp_path)
    folder = tmp_path / "out"
    command = words("convert", paths["embeddings"], "--output", folder, "--to", to, "--images",
                    paths["images"], "--labels", paths["labels"])  # fmt: skip
    assert main(command) == 0
    for number, path in enumerate(paths["embeddings"]):
        file = Embeddings(path)
        if to == "npy":
            rows = np.load(folder / f"img_emb/img_emb_{number}.npy")
            table = pq.read_table(folder / f"metadata/metadata_{number}.parquet")
        else:
            table = pq.read_table(folder / f"embeddings_{number}.parquet")
            rows = np.array(table["embedding"].to_pylist(), np.float32)
        np.testing.assert_array_equal(rows, file.read())
        keys = file.keys()
        assert table["key"].to_pylist() == [key.decode() for key in keys]
        assert table["url"][3].as_py() == f"http://127.0.0.1/{table['key'][3].as_py()}.jpg"
        labels = Labels(next(p for p in paths["labels"] if Path(p).stem == Path(path).stem))
        np.testing.assert_array_equal(table["label"].to_pylist(), labels.label())
    # Again into the same folder, which is ours; never into another's.
    assert main(command) == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.npy").write_bytes(b"mine")
    assert main(words("convert", paths["embeddings"], "--output", tmp_path / "other")) == 2
    assert (tmp_path / "other/notes.npy").read_bytes() == b"mine"


def test_centers_become_one_array(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stores(tmp_path)["centroids"]
    assert main(words("convert", path, "--output", tmp_path / "c.npy")) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "c.npy"), Centroids(path).array)
    np.testing.assert_allclose(Centroids(tmp_path / "c.npy").array, Centroids(path).array, 1e-6)
    assert main(words("convert", path, "--output", tmp_path / "folder")) == 2
    assert "--output NAME.npy" in capsys.readouterr().err

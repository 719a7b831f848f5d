"""Embeddings and labels as other programs leave them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from mlcd.data.image_store import ImageStore


def clip_retrieval(folder: Path, embeddings: Sequence[Path], results: Path) -> None:
    """Write embeddings of chunks as clip-retrieval does of tars: img_emb and metadata, by parts.

    Rows are turned around, as parallel workers leave them.
    """
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    for number, path in enumerate(reversed(embeddings)):
        store = ImageStore(results / "images" / path.stem)
        urls = dict(zip(store.table()["key"], store.table()["url"], strict=True))
        with h5py.File(path) as file:
            rows = file["embedding"][:][::-1]
            places = [urls[key.decode()] for key in file["key"][:][::-1]]
        np.save(folder / f"img_emb/img_emb_{number}.npy", rows)
        names = [place.rpartition("#")[2].partition(".")[0] for place in places]
        frame = pd.DataFrame({"image_path": names, "caption": "of an image"})
        frame.to_parquet(folder / f"metadata/metadata_{number}.parquet")

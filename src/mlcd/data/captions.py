"""The store of tokenized captions: `text/captions/{chunk}.h5`, one row a captioned image."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mlcd.data import hdf5

KIND = "captions"


class Captions:
    """The captions of one chunk, opened by path.

    Attributes: `path`, `n`, `context_length`, `embeddings` (fingerprint of the embeddings that its
    rows point into), `fingerprint`. Raises :class:`UserError` if the file is missing or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with hdf5.reading(path, KIND) as file:
            self.n, self.context_length = map(int, file["token"].shape)
            self.embeddings = str(file.attrs["embeddings"])
            self.fingerprint = str(file.attrs["fingerprint"])

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return captions start … stop − 1: row int32 of the embeddings, rising, and token uint16
        [stop − start, context_length].
        """
        with hdf5.reading(self.path, KIND) as file:
            return file["row"][start:stop], file["token"][start:stop]

"""Part `kept`: the embeddings of a chunk that later stages read, without what was left out.

A copy, of a few kilobytes per image where the image itself has many: so no later stage needs to
know that a run is curated, and each file is whole in itself.
"""

from __future__ import annotations

import os

import h5py
import numpy as np

from mlcd.data import hdf5
from mlcd.data.curation import Curation
from mlcd.data.embeddings import KIND, Embeddings
from mlcd.launch import lease
from mlcd.utils.errors import UserError
from mlcd.utils.fingerprint import code_hash
from mlcd.utils.logging import LOGGER, progress
from mlcd.utils.ownership import claim

#: Rows that are read and written at once.
_BLOCK = 16384
#: Attributes that are not those of the rows that are left, or that each file has its own of.
_OWN = ("kind", "content", "fingerprint", "without_caption")


def write_kept(
    embeddings: str | os.PathLike[str],
    rows: str | os.PathLike[str],
    output: str | os.PathLike[str],
) -> None:
    """Write the rows of `embeddings` that the decisions `rows` keep as `output`.

    The embeddings may be of another encoder than those that were compared: rows are known by their
    keys. Raises :class:`UserError` if the two are not of the same images.
    """
    claim(output)
    source, chosen = Embeddings(embeddings), Curation(rows)
    if source.attributes.get("manifest") != chosen.manifest:
        raise UserError(
            f"{source.path}: of other images than {chosen.path}; rerun curate for chunk "
            f"{chosen.chunk}"
        )
    # Blocks have checksums, which an edit renews; the hash of all rows it does not.
    hdf5.verified_fingerprint(source.path)
    with lease.writing(
        output, code_hash("curate"), source.fingerprint, chosen.fingerprint
    ) as wanted:
        if wanted:
            _write(source, chosen, output)


def _write(source: Embeddings, chosen: Curation, output: str | os.PathLike[str]) -> None:
    # A text tower's embeddings may have images that had none to curate by: they were not judged.
    keep = np.flatnonzero(np.isin(source.keys(), chosen.keys()[chosen.kept()]))
    attributes = {name: value for name, value in source.attributes.items() if name not in _OWN}
    attributes |= {"embeddings": source.fingerprint, "curation": chosen.fingerprint}
    with (
        hdf5.reading(source.path, KIND) as file,
        hdf5.writing(output, KIND, attributes) as writer,
    ):
        names = [name for name in file if isinstance(file[name], h5py.Dataset)]
        of_rows = [name for name in names if not name.startswith("failed_")]
        # A chunk of which nothing is kept has its datasets too.
        starts = range(0, max(1, source.n), _BLOCK)
        for start in progress(starts, label="kept embeddings", unit="block"):
            first, last = np.searchsorted(keep, [start, start + _BLOCK])
            for name in of_rows:
                writer.append(name, file[name][start : start + _BLOCK][keep[first:last] - start])
        for name in set(names) - set(of_rows):
            writer.append(name, file[name][:])
        writer.append("row", keep.astype(np.int64))
    LOGGER.info("curate: %s: %d of %d rows are kept", chosen.chunk, len(keep), source.n)

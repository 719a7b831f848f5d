"""Labeled images, whatever they lie in: each kind of data set is an iterator of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mlcd.config import Evaluate
from mlcd.config.labeled import Dataset
from mlcd.data.labeled import arrays, files, scenes
from mlcd.data.labeled.layout import MASKED, kind
from mlcd.data.labeled.sample import Sample
from mlcd.utils.errors import UserError


def find(section: Evaluate, name: str) -> Dataset:
    """Return the data set called `name`. Raises :class:`UserError` if the config has none."""
    for dataset in section.datasets:
        if dataset.name == name:
            return dataset
    known = ", ".join(dataset.name for dataset in section.datasets)
    raise UserError(f"evaluate.datasets: none is called {name!r}; known: {known}")


def samples(dataset: Dataset) -> Iterator[Sample]:
    """Iterate over a data set in its own order.

    Raises :class:`UserError` with the file and the key of the image whose fields are not what
    the config says, or if the path is of no kind that can be read.
    """
    readers: dict[str, Callable[[Dataset], Iterator[Sample]]] = {
        "tar": files.tars,
        "split_tars": files.split_tars,
        "folders": files.class_folders,
        "parquet": files.parquets,
        "idx": arrays.idx,
        "digits": arrays.digits,
        **dict.fromkeys(("scenes", "voc", *MASKED), scenes.samples),
    }
    return readers[kind(dataset)](dataset)

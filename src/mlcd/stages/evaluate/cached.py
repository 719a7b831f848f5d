"""Cached features of one model on one data set, read for scoring."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch

from mlcd.data import hdf5
from mlcd.data.labeled.sample import judged
from mlcd.stages.evaluate.features import KIND
from mlcd.stages.evaluate.table import SPLITS
from mlcd.utils.errors import UserError


@dataclass
class Features:
    """One features file (formats.md): n images, each with its row of `feature` [n, d].

    `trunk` [n, w] are the features before the encoder's projection, None where there is none.
    `split` is an array of words; without test images, or without a label of one, validation has
    become test (:func:`mlcd.data.labeled.sample.judged`). `key` [n] are
    the images' names. `label` is −1 where there is none. `group` [n] has one number per group,
    images without one each their own; `class_name` [classes] are the words that `label` counts
    over, `tag_name` those of the columns of `tags`. `group_name` [n] is the group's name, or the
    image's key. `encoder_sha256` is of the weights of a trained encoder, None for other models.
    `images` is the identity of the set's files, "" where none was noted.
    """

    model: str
    dataset: str
    seed: int
    fingerprint: str
    key: list[bytes]
    feature: torch.Tensor
    split: np.ndarray
    label: np.ndarray
    class_name: list[str]
    tags: np.ndarray
    group: np.ndarray
    group_name: list[bytes]
    failed: dict[str, int]
    trunk: torch.Tensor | None = None
    encoder_sha256: str | None = None
    tag_name: list[str] = field(default_factory=list)
    images: str = ""

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_name)

    def on(self, *splits: str) -> np.ndarray:
        """Return bool [n]: the images of these splits."""
        return np.isin(self.split, splits)

    def for_probe(self, which: str) -> torch.Tensor:
        """Return what the probe is fitted on, float [n, …]: `which` is evaluate.probe_features."""
        return self.feature if self.trunk is None or which == "embedding" else self.trunk

    def take(self, values: np.ndarray | torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """Return the rows (bool [n]) of `values` [n, …] on the device of the features."""
        device = self.feature.device
        return torch.as_tensor(values, device=device)[torch.from_numpy(rows).to(device)]


def read(path: str | os.PathLike[str], device: torch.device, *, trunk: bool = True) -> Features:
    """Read a features file, `trunk` only where asked for: it may be far the largest.

    Raises :class:`UserError` if it is missing, damaged or old.
    """
    with hdf5.reading(path, KIND) as file:
        names = [name for name in file if trunk or name != "trunk"]
        columns = {name: hdf5.whole(file, name) for name in names}
        attributes = dict(file.attrs)
    if "split" not in columns:
        raise UserError(f"{path}: of another version; remove it and run --part features again")
    n = len(columns["key"])
    tags = np.zeros((n, len(columns["tag_name"])), bool)
    tags[columns["tag"][:, 0], columns["tag"][:, 1]] = True
    split = judged(np.array(SPLITS)[columns["split"]], (columns["label"] >= 0) | tags.any(1))
    group = columns["group"].astype(np.int64)
    alone = group < 0
    # A prefix, so that a key is not taken for a group of that name.
    prefixed = np.array([b"group " + name for name in columns["group_name"].tolist()] or [b""])
    group_name = np.where(alone, columns["key"], prefixed[group]) if n else columns["key"]
    group[alone] = group.max(initial=-1) + 1 + np.arange(alone.sum())
    reasons = Counter(reason.decode() for reason in columns["failed_reason"])
    return Features(
        model=str(attributes["model"]),
        dataset=str(attributes["dataset"]),
        seed=int(attributes["seed"]),
        fingerprint=str(attributes["fingerprint"]),
        key=columns["key"].tolist(),
        feature=torch.from_numpy(columns["feature"]).to(device),
        split=split,
        label=columns["label"].astype(np.int64),
        class_name=_words(columns["class_name"]),
        tags=tags,
        group=group,
        group_name=group_name.tolist(),
        failed=dict(sorted(reasons.items())),
        tag_name=_words(columns["tag_name"]),
        trunk=torch.from_numpy(columns["trunk"]).to(device) if "trunk" in columns else None,
        encoder_sha256=attributes.get("encoder_sha256"),
        images=str(attributes.get("images", "")),
    )


def _words(names: np.ndarray) -> list[str]:
    """Return names as they were read, folders' that are no UTF-8 included."""
    return [name.decode(errors="surrogateescape") for name in names.tolist()]

"""What is known of a data set's images, as columns: names, splits, classes, tags, failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from mlcd.config import Evaluate
from mlcd.config.labeled import Dataset
from mlcd.data.labeled import layout
from mlcd.data.labeled.sample import Sample
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER

#: What the numbers of the column `split` mean.
SPLITS = layout.SPLITS


class Table:
    """What is known about the images, in their order; failed ones apart."""

    def __init__(self) -> None:
        self.kept: list[Sample] = []
        self.failed: list[tuple[str, str]] = []

    def add(self, sample: Sample, reason: str) -> None:
        """Note an image, and why it could not be decoded: '' if it was."""
        if reason:
            self.failed.append((sample.key, reason))
        else:
            # Without its bytes: the table of a large data set must stay small.
            self.kept.append(replace(sample, data=b"", captions=[]))

    def check(self, section: Evaluate, dataset: Dataset) -> None:
        """Raise :class:`UserError` for no images, too many failures, equal keys, unknown fields."""
        total = len(self.kept) + len(self.failed)
        if not total:
            raise UserError(f"{dataset.path}: no images; docs/how-to/evaluate.md says what is read")
        check_failures(section, dataset, self.failed, total)
        refuse_equal_keys(dataset.path, (sample.key for sample in self.kept))
        for option in ("label", "tags", "group"):
            name = getattr(dataset, f"{option}_field")
            if name is not None and not any(getattr(sample, option) for sample in self.kept):
                raise UserError(
                    f"{dataset.path}: no image has a field {name!r}, which evaluate.datasets."
                    f"{option}_field of {dataset.name} names; correct it, or set it to null"
                )

    def columns(self) -> dict[str, np.ndarray]:
        """Return the columns by name, as formats.md has them of features."""
        label, class_name = numbered([sample.label for sample in self.kept])
        group, group_name = numbered([sample.group for sample in self.kept])
        tag_name = sorted({tag for sample in self.kept for tag in sample.tags})
        number = {tag: index for index, tag in enumerate(tag_name)}
        pairs = [(row, number[t]) for row, sample in enumerate(self.kept) for t in sample.tags]
        return {
            "key": words_of([sample.key for sample in self.kept]),
            "split": np.array([SPLITS.index(sample.split) for sample in self.kept], np.int8),
            "label": label,
            "class_name": words_of(class_name),
            "tag": np.array(pairs, np.int32).reshape(-1, 2),
            "tag_name": words_of(tag_name),
            "group": group,
            "group_name": words_of(group_name),
            "failed_key": words_of([key for key, _ in self.failed]),
            "failed_reason": words_of([reason for _, reason in self.failed]),
        }


def check_failures(
    section: Evaluate, dataset: Dataset, failed: Sequence[tuple[str, str]], total: int
) -> None:
    """Say how many of `total` images failed, key and reason of each given, and why.

    Raises :class:`UserError` if they are more than `max_failed`.
    """
    if not failed:
        return
    reasons = Counter(reason for _, reason in failed)
    words = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    if len(failed) > section.max_failed * total:
        raise UserError(
            f"{dataset.path}: {len(failed)} of {total} images failed ({words}), the first "
            f"{failed[0][0]}; fix them or raise evaluate.max_failed"
        )
    LOGGER.warning("%s: %d of %d images failed: %s", dataset.name, len(failed), total, words)


def refuse_not_finite(where: str, rows: np.ndarray) -> None:
    """Raise :class:`UserError` for features with NaN or infinity."""
    if not np.isfinite(rows).all():
        raise UserError(
            f"{where}: features that are not finite; look at the encoder's weights, or train "
            "again with a lower train.lr"
        )


def refuse_equal_keys(path: str, keys: Iterable[str]) -> None:
    """Raise :class:`UserError` if two images have one name: both sides might know one of them."""
    counts = Counter(keys)
    if counts and max(counts.values()) > 1:
        key, count = counts.most_common(1)[0]
        raise UserError(f"{path}: {count} images are called {key}; rename them")


def numbered(values: list[str | None]) -> tuple[np.ndarray, list[str]]:
    """Return int32 [n] places in the sorted distinct values (−1 where None), and those values."""
    names = sorted({value for value in values if value is not None})
    number = {name: index for index, name in enumerate(names)}
    places = [-1 if value is None else number[value] for value in values]
    return np.array(places, np.int32), names


def words_of(words: list[str]) -> np.ndarray:
    """Return names as a column of bytes, S [n]."""
    return np.array([to_bytes(word) for word in words], dtype="S")


def to_bytes(word: str) -> bytes:
    """Return a key or name as UTF-8; bytes of a file's name that are none as they are."""
    try:
        return word.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # JSON may hold half a surrogate pair
        return word.encode(errors="replace")

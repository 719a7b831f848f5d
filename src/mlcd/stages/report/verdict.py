"""The scores of a run, and in words what they say: was anything learned, and who is ahead."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pandas as pd

from mlcd.config.labeled import only_describes
from mlcd.utils.errors import UserError
from mlcd.utils.glossary import metric as metric_words
from mlcd.utils.records import read_csv

_COLUMNS = ["model", "dataset", "metric", "value", "seed"]
#: Columns that a table of scores may have: the direction, and the paper's figure.
_BETTER, PUBLISHED = "better", "published"
#: Models that have learned nothing, and how sentences call them.
_BLANK = {"random": "random weights", "pixels": "raw pixels"}


def read(path: str) -> pd.DataFrame:
    """Return the rows of evaluate's summary.csv. Raises :class:`UserError` if there are none."""
    rows = read_csv(path, "evaluate")
    if not rows:
        raise UserError(f"{path}: holds no value; rerun evaluate")
    frame = pd.DataFrame(rows)
    if missing := [column for column in _COLUMNS if column not in frame]:
        raise UserError(f"{path}: lacks the column {missing[0]}; rerun evaluate")
    frame["value"] = pd.to_numeric(frame["value"], errors="coerce")
    frame = frame.dropna(subset=["value"])
    if frame.empty:
        raise UserError(f"{path}: holds no value; rerun evaluate")
    frame["lower"] = frame.get(_BETTER, "higher") == "lower"
    frame[PUBLISHED] = pd.to_numeric(frame.get(PUBLISHED, math.nan), errors="coerce")
    return frame


def means_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean, std and count over seeds by data set, metric and model, in the file's order."""
    return frame.groupby(["dataset", "metric", "model"], sort=False).agg(
        mean=("value", "mean"),
        std=("value", "std"),
        count=("value", "count"),
        lower=("lower", "first"),
        published=(PUBLISHED, "first"),
    )


def number(value: float, scale: float) -> str:
    """Return three digits after the point for shares, one for percentages."""
    return f"{value:.3f}" if scale <= 1 else f"{value:.1f}"


def signed(value: float, scale: float) -> str:
    """Return a difference with its sign."""
    return ("+" if value >= 0 else "−") + number(abs(value), scale)


def metrics_of(means: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the pairs of data set and metric, in order."""
    pairs = [(dataset, metric) for dataset, metric, _ in means.index]
    return list(dict.fromkeys(pairs))


def title(means: pd.DataFrame) -> str:
    """Say in one sentence whether anything was learned, and whether the frozen encoder is ahead."""
    said = learned(means)
    better, worse, equal = _beside_frozen(means)
    if worse:
        return f"{said}; the frozen encoder is ahead of it on {len(worse)}"
    if better or equal:
        return f"{said}, and the frozen encoder is ahead on none"
    return said


def learned(means: pd.DataFrame) -> str:
    """Say whether the trained encoder is better than what has learned nothing."""
    compared = [(values, sign) for _, values, sign in _judged(means) if "random" in values]
    if not compared:
        sets = {dataset for dataset, _ in metrics_of(means)}
        return f"{len(metrics_of(means))} metrics on {len(sets)} data sets"
    won = sum(
        all(sign * values["trained"] > sign * values[blank] for blank in _BLANK if blank in values)
        for values, sign in compared
    )
    against = " and ".join(
        words for blank, words in _BLANK.items() if any(blank in values for values, _ in compared)
    )
    return f"The trained encoder beats {against} on {won} of {len(compared)} metrics"


def beside_frozen(means: pd.DataFrame) -> str:
    """Say by how much, and where, trained and frozen encoder differ; '' if not both are there."""
    better, worse, equal = _beside_frozen(means)
    total = len(better) + len(worse) + len(equal)
    said = ""
    if worse:
        said = (
            f"The frozen encoder, which made the clusters, is ahead on {len(worse)} of {total} "
            f"metrics, by most in {_gap(worse, means)}. "
        )
    if better:
        whom = "it" if worse else "the frozen encoder, which made the clusters,"
        said += (
            f"The trained encoder is ahead of {whom} on {len(better)} of {total}, by most in "
            f"{_gap(better, means)}. "
        )
    return said


#: Data set and metric, trained's and frozen's value.
_Pair = tuple[tuple[str, str], float, float]


def _beside_frozen(means: pd.DataFrame) -> tuple[list[_Pair], list[_Pair], list[_Pair]]:
    """Return where the trained encoder is better, worse, and equal, to the digits shown."""
    found: tuple[list[_Pair], list[_Pair], list[_Pair]] = ([], [], [])
    for where, values, sign in _judged(means):
        if "frozen" in values:
            ours, theirs = values["trained"], values["frozen"]
            scale = max(abs(ours), abs(theirs))
            same = number(ours, scale) == number(theirs, scale)
            kind = 2 if same else 0 if sign * ours > sign * theirs else 1
            found[kind].append((where, ours, theirs))
    return found


def _gap(pairs: Sequence[_Pair], means: pd.DataFrame) -> str:
    """Return the largest difference of some, relative to the larger value, in words."""
    (dataset, metric), ours, theirs = max(
        pairs, key=lambda pair: abs(pair[1] - pair[2]) / max(abs(pair[1]), abs(pair[2]))
    )
    several = len({name for name, _ in metrics_of(means)}) > 1
    scale = max(abs(ours), abs(theirs))
    return (
        f"{metric_words(metric)}{f' on {dataset}' if several else ''}: "
        f"{number(max(ours, theirs), scale)} against {number(min(ours, theirs), scale)}"
    )


def _judged(means: pd.DataFrame) -> Iterator[tuple[tuple[str, str], dict[str, float], int]]:
    """Iterate over the metrics that the trained encoder has: place, model → mean, direction.

    Those that only describe are left out.
    """
    for dataset, metric in metrics_of(means):
        if only_describes(metric):
            continue
        here = means.loc[dataset].loc[metric]
        values = {str(model): float(value) for model, value in here["mean"].items()}
        if "trained" in values:
            yield (dataset, metric), values, -1 if here["lower"].any() else 1

"""Which rows of a chunk's list, and which of its images, are others in two runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Rows that are named.
_NAMED = 3


def changed_urls(first: Path, second: Path, chunk: str) -> list[str]:
    """Return lines on the rows of a chunk's list that differ."""
    old, new = (_table(folder / "urls" / f"{chunk}.parquet") for folder in (first, second))
    if len(old) != len(new):
        return [f"the list of {chunk} has {len(old)} rows in A, {len(new)} in B"]
    return list(_differing(chunk, old, new, "row", list(old.columns)))


def changed_images(first: Path, second: Path, chunk: str) -> list[str]:
    """Return lines on the images of a chunk that are others, or that one run lacks."""
    old, new = (_table(folder / "images" / chunk / "rows.parquet") for folder in (first, second))
    if len(old) != len(new):
        return [f"{chunk} has {len(old)} rows in A, {len(new)} in B"]
    return list(_differing(chunk, old, new, "key", ["status", "reason", "sha256", "caption"]))


def _table(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pandas()


def _differing(chunk: str, old: Any, new: Any, key: str, columns: list[str]) -> Iterator[str]:
    shared = [name for name in columns if name in old and name in new]
    other = (old[shared].astype(str) != new[shared].astype(str)).to_numpy()
    rows = other.any(axis=1).nonzero()[0].tolist()
    for row in rows[:_NAMED]:
        name = shared[int(other[row].argmax())]
        told = f"{name} {_short(old[name].iloc[row])} in A, {_short(new[name].iloc[row])} in B"
        where = f" ({old['url'].iloc[row]})" if "url" in old and name != "url" else ""
        what = "row" if key == "row" else "image"
        yield f"{what} {chunk}/{old[key].iloc[row]}: {told}{where}"
    if len(rows) > _NAMED:
        yield f"{len(rows) - _NAMED} more rows of {chunk} differ"


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:16]}…" if len(text) == 64 else repr(text[:60])

"""How near a file that was made again is to the recorded one, where their hashes differ."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.training.metrics import TIMING
from mlcd.utils.errors import UserError
from mlcd.utils.records import parse_line, read_csv, read_record

#: Relative difference of numbers that still counts as equal within rounding.
TOLERANCE = 1e-3
_HASH = re.compile(r"[0-9a-f]{16}|[0-9a-f]{64}")
EQUAL, CLOSE, DIFFERENT, UNKNOWN = "equal", "close", "different", "unknown"


def compared(old: Path, new: Path) -> tuple[str, str]:
    """Return a verdict on two files that differ in their hashes, and why, in words."""
    readers = {
        ".json": _records, ".jsonl": _lines, ".csv": _tables, ".h5": _datasets,
        ".safetensors": _datasets,
    }  # fmt: skip
    if old.name == "manifest.json":
        return _bytes(old, new)
    try:
        return readers.get(old.suffix, _bytes)(old, new)
    except (UserError, OSError, ValueError, KeyError) as error:
        return UNKNOWN, f"not comparable: {' '.join(str(error).split())}"


def _bytes(old: Path, new: Path) -> tuple[str, str]:
    first, second = old.read_bytes(), new.read_bytes()
    if first == second:
        return EQUAL, f"{len(first)} bytes"
    place = next(
        (at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]),
        min(len(first), len(second)),
    )
    return DIFFERENT, f"{len(first)} and {len(second)} bytes, which part at byte {place}"


def _records(old: Path, new: Path) -> tuple[str, str]:
    return _values(read_record(old, "its stage"), read_record(new, "its stage"))


def _lines(old: Path, new: Path) -> tuple[str, str]:
    sides = []
    for path in (old, new):
        with path.open("rb") as file:
            parsed = [parse_line(line) for line in file]
        sides.append([{key: one[key] for key in one if key not in TIMING} for one in parsed])
    if len(sides[0]) != len(sides[1]):
        return DIFFERENT, f"{len(sides[0])} lines recorded, {len(sides[1])} now"
    verdict, what = _values(*({str(at): line for at, line in enumerate(side, 1)} for side in sides))
    return verdict, f"{len(sides[0])} lines without their times" if verdict == EQUAL else what


def _tables(old: Path, new: Path) -> tuple[str, str]:
    sides: list[dict[str, Any]] = []
    for path in (old, new):
        rows = read_csv(path, "its stage")
        sides.append({
            f"row {number} {name}": float(cell) if _is_number(cell) else cell
            for number, row in enumerate(rows, 1) for name, cell in row.items()
        })  # fmt: skip
    return _values(*sides)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _values(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, str]:
    """Compare nested values: numbers within the tolerance, everything else exactly."""
    first, second = dict(_flat(old, "")), dict(_flat(new, ""))
    if first == second:
        return EQUAL, "all values"
    worst, where = 0.0, ""
    for key in [*first, *(key for key in second if key not in first)]:
        one: Any = first.get(key)
        other: Any = second.get(key)
        if not (_is_real(one) and _is_real(other)):
            # A hash of what is only close to the recorded differs by nature.
            if one != other and not _is_hash(one, other):
                return DIFFERENT, f"{key}: {_shown(one)} recorded, {_shown(other)} now"
            continue
        if one == other or (one != one and other != other):
            continue
        gap = abs(one - other) / max(1.0, abs(one))
        # NaN, of which no comparison holds, is as far as can be.
        gap = gap if gap == gap else float("inf")
        if gap > worst:
            worst, where = gap, f"{key}: {one:.6g} recorded, {other:.6g} now"
    if worst > TOLERANCE:
        return DIFFERENT, where
    return CLOSE, f"numbers within {TOLERANCE:g}" + (f", {where}" if where else "")


def _flat(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _flat(one, f"{where} {key}".strip())
    elif isinstance(value, list):
        for place, one in enumerate(value):
            yield from _flat(one, f"{where}[{place}]")
    else:
        yield where, value


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_hash(*values: Any) -> bool:
    return all(isinstance(one, str) and _HASH.fullmatch(one) for one in values)


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value)[:60]


def numbers_differ(old: Path, new: Path) -> str:
    """Return the first number that differs between two records, in words; '' if none does."""
    verdict, what = _records(old, new)
    return what if verdict == DIFFERENT else ""


def _datasets(old: Path, new: Path) -> tuple[str, str]:
    worst, name_of_worst = 0.0, ""
    for name, first, second in _arrays(old, new):
        if first is None or second is None:
            return DIFFERENT, f"{name}: only in the {'new' if first is None else 'recorded'} file"
        if first.shape != second.shape:
            return DIFFERENT, f"{name}: shape {first.shape} recorded, {second.shape} now"
        if not np.issubdtype(first.dtype, np.floating):
            if not np.array_equal(first, second):
                share = float(np.mean(first != second))
                return DIFFERENT, f"{name}: {share:.2%} of its entries differ"
            continue
        if not np.array_equal(np.isfinite(first), np.isfinite(second)):
            return DIFFERENT, f"{name}: other entries are no finite numbers"
        whole = np.isfinite(first)
        first, second = first[whole], second[whole]
        scale = max(1e-12, float(np.abs(first).max(initial=0)))
        gap = np.abs(first.astype(np.float64) - second.astype(np.float64)).max(initial=0)
        if float(gap) / scale > worst:
            worst, name_of_worst = float(gap) / scale, name
    if not worst:
        return CLOSE, "all numbers equal; what it says of itself differs"
    told = f"{name_of_worst}: largest difference {worst:.2g} of the largest number"
    return (CLOSE if worst <= TOLERANCE else DIFFERENT), told


def _arrays(old: Path, new: Path) -> Iterator[tuple[str, Any, Any]]:
    """Iterate over name and both arrays, None where a file lacks one."""
    if old.suffix == ".safetensors":
        from safetensors.numpy import load_file

        first, second = load_file(old), load_file(new)
        for name in sorted({*first, *second}):
            yield name, first.get(name), second.get(name)
        return
    import h5py

    with h5py.File(old) as a, h5py.File(new) as b:
        for name in sorted({*a, *b}):
            yield name, a[name][()] if name in a else None, b[name][()] if name in b else None


def images(old: Path, new: Path) -> tuple[str, str]:
    """Return a verdict on a chunk that was downloaded again, with other results, row by row.

    `old` and `new` are folders of images. What is gone from the web makes it unknown; an image
    that is another one now makes it different.
    """
    from mlcd.data.image_store import ImageStore

    columns = ["key", "status", "reason", "sha256"]
    first, second = (ImageStore(folder).table(columns) for folder in (old, new))
    if first["key"].tolist() != second["key"].tolist():
        return DIFFERENT, "other rows"
    had, has = first["status"] == "success", second["status"] == "success"
    other = int((had & has & (first["sha256"] != second["sha256"])).sum())
    gone, come = had & ~has, ~had & has
    if other:
        return DIFFERENT, f"{other} of {int(had.sum())} images are other bytes now"
    if gone.any():
        reasons = Counter(second["reason"][gone].tolist()).most_common(3)
        told = ", ".join(f"{name} {count}" for name, count in reasons)
        same = int((had & has).sum())
        return UNKNOWN, (
            f"the source lacks {int(gone.sum())} of {int(had.sum())} images now ({told}); "
            f"{same} are equal"
        )
    if come.any():
        return UNKNOWN, f"the source has {int(come.sum())} images that it lacked; all others equal"
    if all(tar.read_bytes() == (new / tar.name).read_bytes() for tar in ImageStore(old).tars):
        return CLOSE, "all tars equal; other passes, or other reasons of what did not arrive"
    return DIFFERENT, "equal images, other tars"

"""Two runs side by side, from their locks: where they part, why, and what follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlcd.commands.audit import lock as locks
from mlcd.commands.audit.nodes import ORDER
from mlcd.utils.fingerprint import differing
from mlcd.utils.records import read_csv, read_record

#: Lines that a screen takes, of each kind.
_FILES, _SCORES, _MACHINE = 5, 12, 5

Lock = dict[str, Any]


def difference(first: Path, second: Path) -> tuple[bool, list[str]]:
    """Return whether two runs are equal, and lines that say where they part, and why."""
    a, b = locks.read(first), locks.read(second)
    if a["root"] == b["root"]:
        return True, [f"equal: both are the run {a['root']}"]
    lines = [f"A {first}: {a['root']}", f"B {second}: {b['root']}", ""]
    causes = _inputs(a, b) + _causes(first, second, a, b)
    lines += causes or ["no input, section or code differs: it is the machine or the packages"]
    lines += _machines(first, second, whole=not causes)
    parted = next((stage for stage in ORDER if _differing(a, b, stage)), None)
    if parted is not None:
        paths = _differing(a, b, parted)
        lines += ["", f"the first files that differ, of stage {parted}:"]
        lines += [f"  {path}" for path in paths[:_FILES]]
        lines += [f"  and {len(paths) - _FILES} more"] if len(paths) > _FILES else []
        lines += _followers(a, b, parted)
    return False, lines + _scores(first, second)


def _differing(a: Lock, b: Lock, stage: str) -> list[str]:
    """Return the files of a stage that are not the same in both runs."""
    found = []
    for path in sorted({*a["files"], *b["files"]}):
        pair = [lock["files"].get(path) for lock in (a, b)]
        known = next(node for node in pair if node)
        if known["stage"] != stage or not known["repeats"]:
            continue
        if None in pair:
            found.append(f"{path} (only in {'A' if pair[0] else 'B'})")
        elif pair[0]["hash"] != pair[1]["hash"]:
            found.append(path)
    return found


def _followers(a: Lock, b: Lock, stage: str) -> list[str]:
    later = ORDER[ORDER.index(stage) + 1 :]
    counts = [(name, len(_differing(a, b, name))) for name in later]
    told = ", ".join(f"{count} of {name}" for name, count in counts if count)
    return [f"what follows: {told}"] if told else []


def _inputs(a: Lock, b: Lock) -> list[str]:
    old, new = ({entry["name"]: entry["hash"] for entry in lock["inputs"]} for lock in (a, b))
    lines = []
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            both = name in old and name in new
            lines.append(f"cause: the input {name} {'differs' if both else 'is in one run only'}")
    return lines


def _causes(first: Path, second: Path, a: Lock, b: Lock) -> list[str]:
    lines = []
    codes = [read_record(path / locks.CODE, "audit")["stages"] for path in (first, second)]
    for stage in ORDER:
        if stage not in a["stages"] or stage not in b["stages"]:
            continue
        old, new = a["stages"][stage], b["stages"][stage]
        lines += [
            f"cause: {stage}.{key}: {one!r} in A, {other!r} in B"
            for key, one, other in _changes(old["section"], new["section"])
        ]
        lines += [
            f"cause: {stage} ran with {key} {one} in A, {other} in B"
            for key, one, other in _changes(old["how"], new["how"])
        ]
        if old["code"] != new["code"]:
            found = differing(codes[0][stage], codes[1][stage])
            told = "; ".join(f"{module}: {', '.join(names[:4])}" for module, names in found.items())
            lines.append(f"cause: code of {stage}: {told or 'differs'}")
    return lines


def _machines(first: Path, second: Path, *, whole: bool) -> list[str]:
    old, new = (read_record(path / locks.SYSTEM, "audit") for path in (first, second))
    lines = [f"machine: {key}: {one!r} in A, {other!r} in B"
             for key, one, other in _changes(old, new)]  # fmt: skip
    shown = lines if whole else lines[:_MACHINE]
    more = len(lines) - len(shown)
    return shown + ([f"machine: {more} more differences"] if more else [])


def _scores(first: Path, second: Path) -> list[str]:
    tables = []
    for folder in (first, second):
        path = folder / "evaluate" / "summary.csv"
        rows = read_csv(path, "evaluate") if path.is_file() else []
        tables.append({(row["model"], row["dataset"], row["metric"]): row["value"] for row in rows})
    pairs = [(key, value, tables[1].get(key)) for key, value in tables[0].items()
             if tables[1].get(key) != value]  # fmt: skip
    if not pairs:
        return []
    lines = ["", f"{len(pairs)} of {len(tables[0])} scores differ (A, B):"]
    lines += [f"  {' '.join(key)}: {old}, {new}" for key, old, new in pairs[:_SCORES]]
    return lines + ([f"  and {len(pairs) - _SCORES} more"] if len(pairs) > _SCORES else [])


def _changes(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """Return key, old and new value of all that differs between two nested mappings."""
    first, second = _flat(old, ""), _flat(new, "")
    return [
        (key, first.get(key), second.get(key))
        for key in sorted({*first, *second})
        if first.get(key) != second.get(key)
    ]


def _flat(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {where: value}
    found: dict[str, Any] = {}
    for key, one in value.items():
        found |= _flat(one, f"{where}.{key}" if where else str(key))
    return found

"""Two runs side by side, from their locks: where they part, why, and what follows from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mlcd.commands.audit import lock as locks
from mlcd.commands.audit.making import making_of
from mlcd.commands.audit.nodes import ORDER
from mlcd.commands.audit.rows import changed_images, changed_urls
from mlcd.utils.errors import UserError
from mlcd.utils.fingerprint import differing
from mlcd.utils.records import read_csv, read_record

#: Lines that a screen takes, of each kind.
_CAUSES, _FILES, _SCORES, _MACHINE = 8, 5, 12, 5
#: How metrics begin that are shares of the test images.
_SHARES = ("knn_", "linear_probe", "zero_shot", "retrieval_r", "image_to_text_r")

Lock = dict[str, Any]


def difference(first: Path, second: Path) -> tuple[bool, list[str]]:
    """Return whether two runs are equal, and lines that say where they part, and why."""
    a, b = locks.read(first), locks.read(second)
    if a["root"] == b["root"]:
        return True, [f"equal: both are the run {a['root']}"]
    lines = [f"A {first}: {a['root']}", f"B {second}: {b['root']}", ""]
    parted = {stage: paths for stage in ORDER if (paths := _differing(a, b, stage))}
    stage = next(iter(parted), None)
    lines += _parting(stage, parted[stage]) if stage else ["all files that repeat are equal"]
    causes = _inputs(a, b) + _rows(first, second, a, b) + _causes(first, second, a, b, parted)
    if stage is not None and not causes:
        lines.append(
            "no input, section or code differs: it is the machine, the packages, or a stage that "
            "does not repeat (mlcd audit replay tells)"
        )
    lines += causes[:_CAUSES]
    lines += [f"and {len(causes) - _CAUSES} more causes"] if len(causes) > _CAUSES else []
    lines += _machines(first, second, whole=not causes)
    lines += _followers(parted, stage)
    return False, lines + _scores(first, second)


def _parting(stage: str, paths: list[str]) -> list[str]:
    lines = [f"the first files that differ, of stage {stage}:", *(f"  {p}" for p in paths[:_FILES])]
    return lines + ([f"  and {len(paths) - _FILES} more"] if len(paths) > _FILES else [])


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


def _followers(parted: dict[str, list[str]], first: str | None) -> list[str]:
    told = ", ".join(f"{len(paths)} of {name}" for name, paths in parted.items() if name != first)
    return [f"what follows: {told}"] if told else []


def _inputs(a: Lock, b: Lock) -> list[str]:
    old, new = (_hashes_by_name(lock["inputs"]) for lock in (a, b))
    lines = []
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            both = name in old and name in new
            lines.append(f"cause: the input {name} {'differs' if both else 'is in one run only'}")
    return lines


def _hashes_by_name(inputs: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return name → hashes, rising: files in different folders may have one name."""
    found: dict[str, list[str]] = {}
    for entry in sorted(inputs, key=lambda entry: str(entry["hash"])):
        found.setdefault(entry["name"], []).append(entry["hash"])
    return found


def _rows(first: Path, second: Path, a: Lock, b: Lock) -> list[str]:
    """Return lines on the rows of lists, and the images, that are others."""
    readers = {"urls": changed_urls, "images": changed_images}
    for kind, reader in readers.items():
        chunks = sorted({
            found.name for path in {*a["files"]} & {*b["files"]}
            if (found := making_of(path)) and found.kind == kind
            and path.endswith(".parquet")
            and a["files"][path]["hash"] != b["files"][path]["hash"]
        })  # fmt: skip
        if not chunks:
            continue
        try:
            lines = [f"cause: {line}" for line in reader(first, second, chunks[0])]
        except (UserError, OSError, ValueError, KeyError) as error:
            lines = [f"{chunks[0]}: its rows cannot be compared ({' '.join(str(error).split())})"]
        more = [f"and other rows in {len(chunks) - 1} more chunks"] if len(chunks) > 1 else []
        if lines:
            return lines + more
    return []


def _causes(first: Path, second: Path, a: Lock, b: Lock, parted: dict[str, list[str]]) -> list[str]:
    lines = []
    codes = [read_record(path / locks.CODE, "audit")["stages"] for path in (first, second)]
    for stage in ORDER:
        having = [name for name, lock in (("A", a), ("B", b)) if stage in lock["stages"]]
        if len(having) == 1:
            lines.append(f"cause: the stage {stage} is in {having[0]} only")
        if len(having) < 2:
            continue
        old, new = a["stages"][stage], b["stages"][stage]
        mute = "" if stage in parted else f" (all files of {stage} are equal)"
        lines += [
            f"cause: {stage}.{key}: {one!r} in A, {other!r} in B{mute}"
            for key, one, other in _changes(old["section"], new["section"])
        ]
        lines += [
            f"cause: {stage} ran with {key} {one} in A, {other} in B{mute}"
            for key, one, other in _changes(old["how"], new["how"])
        ]
        if old["code"] != new["code"]:
            found = differing(codes[0][stage], codes[1][stage])
            told = "; ".join(f"{module}: {', '.join(names[:4])}" for module, names in found.items())
            lines.append(f"cause: code of {stage}: {told or 'differs'}{mute}")
    # One edited module is in the code of many stages; those without effect come last.
    return sorted(lines, key=lambda line: line.endswith("are equal)"))


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
    keys = list(dict.fromkeys([*tables[0], *tables[1]]))
    pairs = [(key, tables[0].get(key), tables[1].get(key)) for key in keys
             if tables[0].get(key) != tables[1].get(key)]  # fmt: skip
    if not pairs:
        return []
    # What the config is after comes first.
    pairs.sort(key=lambda pair: pair[0][0] != "trained")
    lines = ["", f"{len(pairs)} of {len(keys)} scores differ (A, B; ± 95 % of the test images):"]
    for key, old, new in pairs[:_SCORES]:
        told = ", ".join(
            f"{value or 'none'}{_interval(folder, key, value)}"
            for folder, value in ((first, old), (second, new))
        )
        lines.append(f"  {' '.join(key)}: {told}")
    return lines + ([f"  and {len(pairs) - _SCORES} more"] if len(pairs) > _SCORES else [])


def _interval(folder: Path, key: tuple[str, str, str], value: str | None) -> str:
    """Return the half width of the 95 % interval of a share of test images; '' of other scores."""
    model, dataset, metric = key
    path = folder / "evaluate" / f"{model}.json"
    if value is None or not metric.startswith(_SHARES) or not path.is_file():
        return ""
    if any(word in metric for word in ("map", "auc", "mean")):
        return ""
    found = read_record(path, "evaluate")["datasets"].get(dataset, {})
    count = found.get("images", {}).get("test", 0)
    if metric.startswith("retrieval_r"):
        count = found.get("retrieval", {}).get("queries", 0)
    share = min(1.0, max(0.0, float(value)))
    return f" ± {1.96 * math.sqrt(share * (1 - share) / count):.4f}" if count else ""


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

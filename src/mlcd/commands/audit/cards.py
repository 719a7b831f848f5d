"""The model cards of a run's exports: the seal lets them name the run, and verify reads them.

A card is no part of the identity that it names. So what it says of the run is compared with the
run's files: the identity, the weights and the scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mlcd.commands.audit.nodes import Finding
from mlcd.stages.export import front_matter
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_file, write_text
from mlcd.utils.logging import LOGGER
from mlcd.utils.ownership import is_ours
from mlcd.utils.records import read_csv, read_record

_SUMMARY = PurePosixPath("evaluate") / "summary.csv"


def of(lock: dict[str, Any]) -> list[str]:
    """Return the paths of the cards in a lock."""
    places = map(PurePosixPath, lock["files"])
    return [str(one) for one in places if one.parts[0] == "export" and one.name == "README.md"]


def name_run(results: Path, lock: dict[str, Any]) -> None:
    """Write the run's identity into its cards, and the new hashes of these into the lock.

    A card that names the run already is not touched; one that somebody else wrote is left as it is.
    Raises :class:`UserError` if a card cannot be written.
    """
    for name in of(lock):
        path = results / name
        if not is_ours(path):
            LOGGER.warning("%s: not written by mlcd, so it does not name the run", path)
            continue
        try:
            text = _text(path)
            new = front_matter.named(text, lock["root"])
        except ValueError as error:
            LOGGER.warning(
                "%s: not as this version writes it (%s), so it does not name the run", path, error
            )
            continue
        if new != text:
            write_text(path, new)
        lock["files"][name] |= {"hash": sha256_file(path), "size": path.stat().st_size}


def check(results: Path, lock: dict[str, Any]) -> Iterator[Finding]:
    """Iterate over what the cards say wrongly of the run: at most one finding for each."""
    for name in of(lock):
        path = results / name
        # A missing one is found as any file, and others' say what they like.
        if not path.is_file() or not is_ours(path):
            continue
        try:
            if what := _wrong(results, lock, path):
                yield Finding(name, what)
        except UserError:
            continue  # of another file, which is found itself
        except ValueError as error:
            yield Finding(name, f"its front matter is damaged or edited ({error})")


def _wrong(results: Path, lock: dict[str, Any], path: Path) -> str:
    """Return what a card says wrongly of the run, '' for nothing. Raises ValueError, UserError."""
    text = _text(path)
    named = front_matter.run_of(text)
    if named != lock["root"]:
        return f"names {f'the run {named}' if named else 'no run'}, and this is {lock['root']}"
    weights = read_record(path.parent / "check.json", "export")["encoder_sha256"]
    if f"`{weights}`" not in text:
        return "is of other weights than the export"
    claimed, measured = front_matter.scores(text), _measured(results)
    # An export by hand may show none. One that shows some shows all.
    for key in sorted({*claimed, *measured} if claimed else ()):
        if claimed.get(key) != measured.get(key):
            said, found = (str(scores.get(key, "none")) for scores in (claimed, measured))
            return f"says {' '.join(key)} {said}, and {_SUMMARY} says {found}"
    return ""


def _measured(results: Path) -> dict[tuple[str, str], float]:
    """Return the scores that a card shows: (data set, metric) → value."""
    path = results / _SUMMARY
    if not path.is_file():
        return {}
    return {
        (row["dataset"], row["metric"]): float(row["value"])
        for row in read_csv(path, "evaluate")
        if row["model"] == front_matter.JUDGED and front_matter.is_own(row["metric"])
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None

"""JSON and CSV files that a later stage reads: each carries a checksum of its own content.

A bit that flipped on a disk, a line that was lost, a number that was edited by hand: the reader
refuses the file by name, and nothing is computed from it. The checksum is of the values, so that
other blanks or another order of keys change nothing. Large files have theirs elsewhere: HDF5 files
in their attributes (:mod:`mlcd.data.hdf5`), weights, tables and tars in the JSON beside them.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mlcd.utils.errors import UserError
from mlcd.utils.files import read_json, sha256_json, write_json, write_text

#: The key that holds the checksum, and the first word of the column that is named by it.
CHECKSUM = "checksum"
#: Hex digits of it in a line of a log, of which there are many.
_SHORT = 8


def write_record(path: str | os.PathLike[str], value: dict[str, Any]) -> None:
    """Write `value` as :func:`mlcd.utils.files.write_json` does, with its checksum as last key."""
    # As it will be read: keys that are numbers become words.
    read_back = json.loads(json.dumps(value))
    write_json(path, {**value, CHECKSUM: sha256_json(read_back)})


def read_record(path: str | os.PathLike[str], stage: str) -> dict[str, Any]:
    """Return what :func:`write_record` wrote, without the checksum.

    Raises :class:`UserError`, which names the file and the `stage` to rerun, if the file is
    missing, damaged or edited.
    """
    return read_with_checksum(path, stage)[0]


def read_with_checksum(path: str | os.PathLike[str], stage: str) -> tuple[dict[str, Any], str]:
    """Return what :func:`read_record` does, and the checksum (hex). Raises as it does."""
    value = read_json(path, object)
    if not isinstance(value, dict) or CHECKSUM not in value:
        raise UserError(
            f"{path}: has no checksum of its content (damaged, or of another version); "
            f"remove it and rerun {stage}"
        )
    checksum = value.pop(CHECKSUM)
    if checksum != sha256_json(value):
        raise _changed(path, stage)
    return value, checksum


def line_of(record: dict[str, Any]) -> str:
    """Return `record` as a line of JSON lines, its checksum as last key."""
    read_back = json.loads(json.dumps(record))
    return json.dumps({**record, CHECKSUM: sha256_json(read_back)[:_SHORT]}, allow_nan=False) + "\n"


def parse_line(line: str | bytes) -> dict[str, Any]:
    """Return what :func:`line_of` was given, without the checksum; ValueError for a damaged line.

    A line without a checksum is somebody else's.
    """
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("no object")
    said = value.pop(CHECKSUM, None)
    if said is not None and said != sha256_json(value)[:_SHORT]:
        raise ValueError("its checksum differs")
    return value


def write_csv(
    path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Write a table as CSV; the name of a last, empty column holds the checksum of all others."""
    table = [list(columns)]
    table += [["" if cell is None else str(cell) for cell in row] for row in rows]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, _heading(table)])
    writer.writerows([*row, ""] for row in table[1:])
    write_text(path, text.getvalue())


def read_csv(path: str | os.PathLike[str], stage: str) -> list[dict[str, str]]:
    """Return the rows that :func:`write_csv` wrote, column → cell, without the checksum.

    Raises :class:`UserError`, which names the file and the `stage` to rerun, if the file is
    missing, damaged or edited.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as handle:
            table = list(csv.reader(handle, strict=True))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage {stage} first") from None
    except (csv.Error, ValueError) as error:
        raise UserError(f"{path}: not readable as CSV ({error}); rerun {stage}") from None
    if not table or not table[0] or not table[0][-1].startswith(CHECKSUM):
        raise UserError(
            f"{path}: has no column {CHECKSUM} (damaged, or of another version); rerun {stage}"
        )
    content = [row[:-1] for row in table]
    if table[0][-1] != _heading(content) or any(row[-1:] != [""] for row in table[1:]):
        raise _changed(path, stage)
    columns = content[0]
    return [dict(zip(columns, row, strict=True)) for row in content[1:]]


def _heading(table: list[list[str]]) -> str:
    return f"{CHECKSUM} {sha256_json(table)}"


def _changed(path: str | os.PathLike[str], stage: str) -> UserError:
    return UserError(
        f"{path}: not what was written (its checksum differs: damaged, or edited); "
        f"remove it and rerun {stage}"
    )

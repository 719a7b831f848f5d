"""Sizes in bytes and times as people write and read them: pydantic's ByteSize behind the sizes."""

from __future__ import annotations

import re

from pydantic import ByteSize, TypeAdapter

from mlcd.utils.errors import UserError

_SIZE = TypeAdapter(ByteSize)


def parse_size(text: str, option: str = "--memory-limit") -> int:
    """Return bytes of '1GiB', '500MB', '8G' or '1000000'; K, M, G, T without i are powers of 1000.

    Raises :class:`UserError`, which names `option`, for anything else and for nothing at all.
    """
    # ByteSize alone would take bits, and the beginning of what it does not understand.
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*((?:[KMGT]I?)?)B?\s*", text, re.IGNORECASE)
    size = _SIZE.validate_python(f"{found[1]}{found[2]}B") if found else 0
    if not size:
        raise UserError(f"{option}: {text!r} is no size; write for instance 1GiB or 500MB")
    return int(size)


def decimal_size(count: float) -> str:
    """Return a number of bytes with a decimal unit: 12.3 MB."""
    # SI writes k for a thousand; K is the kelvin.
    return ByteSize(count).human_readable(decimal=True, separator=" ").replace("K", "k")


def binary_size(count: float) -> str:
    """Return a number of bytes with a binary unit: 1.5 GiB."""
    return ByteSize(count).human_readable(separator=" ")


def whole_mebibytes(count: float) -> str:
    """Return a number of bytes rounded up to whole MiB, as a least size: 513 MiB."""
    return f"{-int(-count // ByteSize.byte_sizes['mib'])} MiB"


def duration(seconds: float) -> str:
    """Return 4.2 s, 42 s, 7 min 5 s or 3 h 10 min."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:,.0f} h {seconds % 3600 // 60:.0f} min"

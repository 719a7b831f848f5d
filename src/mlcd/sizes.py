"""Sizes of memory as people write them on a command line."""

from __future__ import annotations

import re

from mlcd.errors import UserError

_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_UNITS |= {"KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}


def parse_size(text: str) -> int:
    """Return bytes of '1GiB', '500MB', '8G' or '1000000'. Raises :class:`UserError`."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?|)B?\s*", text.upper())
    if not found or float(found[1]) == 0:
        raise UserError(f"--memory-limit: {text!r} is no size; write for instance 1GiB or 500MB")
    return int(float(found[1]) * _UNITS[found[2]])

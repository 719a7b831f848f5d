"""Fencing: a process that has lost its right to write an output publishes nothing more.

A process that was frozen for minutes, or whose node fell silent, may have been given up and
replaced when it continues. Whoever holds a right (a lease, a gang's record) registers a check here;
every file is published through :func:`mlcd.utils.files.atomic_path`, which calls :func:`check` just
before the rename. Code that publishes in another way calls it itself.

What remains is the moment between check and rename.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

#: Each raises :class:`mlcd.utils.errors.UserError` once its right is lost.
_checks: list[Callable[[], None]] = []


@contextlib.contextmanager
def fenced(holds: Callable[[], None]) -> Iterator[None]:
    """Publish nothing in this process, until the block ends, unless `holds` returns."""
    _checks.append(holds)
    try:
        yield
    finally:
        _checks.remove(holds)


def check() -> None:
    """Return if every right that this process has taken still holds.

    Raises :class:`mlcd.utils.errors.UserError` otherwise.
    """
    for holds in _checks:
        holds()

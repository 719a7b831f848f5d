"""Hand over what was begun one item late, so that the next is being made meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """Iterate; an item is asked for before the one before it is handed over.

    Items are not None.
    """
    last = None
    for item in items:
        if last is not None:
            yield last
        last = item
    if last is not None:
        yield last

"""Ranks that still work when the first of a gang has finished."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection
from pathlib import Path

#: What a rank that works does at least within the grace: seconds of CPU time, or MB written. The
#: heartbeat of an idle one takes a hundredth of it.
_CPU_S, _WRITTEN_MB = 1.0, 1.0


class Stragglers:
    """Tells a rank that is stuck from one that has more to do than the others.

    Rank 0 writes the final files alone, up to some 100 GB: that takes as long as the disk needs, so
    no time limit is right. What counts is that it works, as its heartbeat's file tells.

    `grace`: seconds without work after which a rank counts as stuck.
    """

    def __init__(self, grace: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._grace = grace
        self._clock = clock
        # Rank → when it was last seen to work, and what it had used by then.
        self._seen: dict[int, tuple[float, float, float]] = {}

    def stuck(self, files: Path, ranks: int, done: Collection[int]) -> int | None:
        """Return a rank of `ranks` that is not `done` and does nothing any more, or None.

        `files`: the folder of the ranks' files. To be asked again and again; while no rank is done
        none counts as stuck, since all may wait for each other's work.
        """
        if not done:
            self._seen.clear()
            return None
        now = self._clock()
        for rank in range(ranks):
            if rank in done:
                continue
            cpu, written, in_disk = _used(files / f"rank-{rank}.usage.json")
            since, *before = self._seen.setdefault(rank, (now, cpu, written))
            # fsync of many GB takes minutes without a second of CPU time.
            if in_disk or cpu - before[0] >= _CPU_S or written - before[1] >= _WRITTEN_MB:
                self._seen[rank] = (now, cpu, written)
            elif now - since > self._grace:
                return rank
        return None


def _used(path: Path) -> tuple[float, float, bool]:
    """Return CPU seconds, MB written, and whether a rank waits for a disk, by its heartbeat."""
    # None yet, or half a line, or one of another version: told again in a few seconds.
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        usage = json.loads(path.read_text())
        return usage["cpu_s"], usage["written_mb"], usage["in_disk"]
    return 0.0, 0.0, False

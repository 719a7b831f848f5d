"""Sizes of blocks under a memory limit."""

from __future__ import annotations

import psutil

from mlcd.neighbors.memory import plan_blocks


def test_blocks_follow_the_limit() -> None:
    used = psutil.Process().memory_info().rss
    small, large = (plan_blocks(used + (mib << 20), 10**7, 512, 8, 0) for mib in (200, 300))
    assert 256 <= small.rows < large.rows < 32768
    assert not small.keep
    assert plan_blocks(used + (1150 << 20), 10**7, 512, 8, 0).rows == 32768
    assert plan_blocks(used + (4 << 30), 10**5, 512, 8, 0).keep

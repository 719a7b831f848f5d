"""Sizes of blocks under a memory limit."""

from __future__ import annotations

import sys

import psutil
import pytest

from mlcd.neighbors import memory
from mlcd.neighbors.memory import plan_blocks, plan_with_integers


def test_blocks_follow_the_limit() -> None:
    used = psutil.Process().memory_info().rss
    small, large = (plan_blocks(used + (mib << 20), 10**7, 512, 8, 0) for mib in (200, 300))
    assert 256 <= small.rows < large.rows < 32768
    assert not small.keep
    assert plan_blocks(used + (1150 << 20), 10**7, 512, 8, 0).rows == 32768
    assert plan_blocks(used + (4 << 30), 10**5, 512, 8, 0).keep


def test_integers_need_room_for_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    used = memory.resident()
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    small, large = (used + (mib << 20) for mib in (200, 1000))
    plan, integers = plan_with_integers(small, 10**7, 512, 8, 0)
    assert not integers
    assert plan.rows == plan_blocks(small, 10**7, 512, 8, 0).rows
    plan, integers = plan_with_integers(large, 10**7, 512, 8, 0)
    assert integers
    # Rows that stay in memory count more than integers do.
    plan, integers = plan_with_integers(used + (440 << 20), 10**5, 512, 8, 0)
    assert (plan.keep, integers) == (True, False)
    monkeypatch.setitem(sys.modules, "torch", memory)
    assert plan_with_integers(small, 10**7, 512, 8, 0)[1]

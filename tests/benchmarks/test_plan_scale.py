"""Presets stay at about a thousand jobs."""

from __future__ import annotations

import pytest

from helpers.benchmark_scripts import plan_scale
from mlcd.config import load
from mlcd.data.sources import plan


@pytest.mark.parametrize("preset", plan_scale.SIZES)
def test_presets_make_at_most_about_a_thousand_jobs(preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan_scale.write_lists(tmp_path, preset)
    config = load(plan_scale.preset_file(preset))
    chunks = plan(config.metadata, config.prepare, tmp_path / "listings")
    assert sum(chunk.rows for chunk in chunks.values()) == plan_scale.SIZES[preset][2]
    # prepare, download, embed, label a chunk, and some twenty others.
    assert 4 * len(chunks) + 25 <= 1100

"""Numbers that are compared: blocks of centers, and what is no number."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.explored_runs import write_run
from mlcd.commands.audit import nearness, numbers
from mlcd.commands.audit.nodes import collect
from mlcd.data.labels import Labels
from mlcd.utils.records import write_record


def test_numbers_are_sampled_from_chunks_that_the_run_counts(tmp_path):
    """A list that was taken out of the config leaves files behind, which no center is of."""
    results = write_run(tmp_path / "results", (4, 5, 6), 3, 2)
    files = {path: node.record() for path, node in collect(results)[0].items()}
    lock = {"stages": {}, "inputs": [], "files": files}
    assert len(numbers.Run(results, lock, 10, 0).chunks()) == 3
    names = ["photos-00000", "photos-00002"]
    kept = [Labels(results / "labels" / f"{name}.h5").fingerprint for name in names]
    write_record(results / "labels" / "summary.json", {"made_from": {"labels": kept}})
    assert numbers.Run(results, lock, 10, 0).chunks() == names


@pytest.mark.parametrize("block", [3, 7, 100])
def test_blocks_of_centers_give_what_all_at_once_give(monkeypatch, block):
    rng = np.random.default_rng(0)
    rows, centers = rng.standard_normal((9, 5)), rng.standard_normal((40, 5)).astype(np.float32)
    monkeypatch.setattr(numbers, "_CENTERS", block)
    wanted = -np.sort(-(rows @ centers.T.astype(np.float64)), axis=1)[:, :4]
    np.testing.assert_allclose(numbers._best(rows, centers, 4), wanted, rtol=0, atol=1e-12)


def test_nan_agrees_with_nan_alone():
    nan = float("nan")
    assert nearness._values({"a": nan, "b": 1.0}, {"a": nan, "b": 1.0 + 1e-6})[0] == nearness.CLOSE
    assert nearness._values({"a": nan}, {"a": 0.5})[0] == nearness.DIFFERENT
    assert nearness._values({"a": 0.5}, {"a": nan})[0] == nearness.DIFFERENT
    assert nearness._values({"a": nan, "b": 1.0}, {"a": nan, "b": 2.0})[0] == nearness.DIFFERENT

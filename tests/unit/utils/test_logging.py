"""Progress of a run that resumes: what was done before counts."""

import itertools

from mlcd.utils import logging


def test_progress_of_a_resumed_run_counts_what_was_done_before(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.time, "monotonic", itertools.count(0, 6).__next__)
    logging.setup_logging(tmp_path / "log", "test")
    done = list(logging.progress(range(90, 94), initial=90, label="train", unit="step"))
    assert done == [90, 91, 92, 93]
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.partition("train: ")[2].partition(",")[0] for line in lines] == [
        "92 of 94 step", "94 of 94 step",
    ]  # fmt: skip

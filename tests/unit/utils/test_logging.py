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
        "92 of 94 steps", "94 of 94 steps",
    ]  # fmt: skip
    assert "left" in lines[0]


def test_a_line_of_progress_is_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.time, "monotonic", itertools.count(0, 20).__next__)
    logging.setup_logging(tmp_path / "log", "embed")
    batches = [[0] * 64, [0] * 36]
    options = {"label": "embed: photos", "unit": "image", "size": len}
    assert list(logging.progress(batches, total=200, initial=100, **options)) == batches
    assert list(logging.progress(batches, **options)) == batches
    lines = [line.partition(" INFO ")[2] for line in (tmp_path / "log").read_text().splitlines()]
    found = [logging.PROGRESS.match(line).groups() for line in lines]
    assert [one[:4] for one in found] == [
        ("embed: photos", "164", "200", "image"), ("embed: photos", "200", "200", "image"),
        ("embed: photos", "64", None, "image"), ("embed: photos", "100", None, "image"),
    ]  # fmt: skip
    assert lines[0] == "embed: photos: 164 of 200 images, 3.2 images/s, 11 s left"


def test_words_of_the_moment_follow_and_are_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.time, "monotonic", itertools.count(0, 20).__next__)
    logging.setup_logging(tmp_path / "log", "train")
    losses = iter(["", "loss 9.12"])
    list(logging.progress(range(2), label="train", unit="step", said=lambda: next(losses)))
    lines = [line.partition(" INFO ")[2] for line in (tmp_path / "log").read_text().splitlines()]
    assert lines == [
        "train: 1 of 2 steps, 0.05 steps/s, 20 s left",
        "train: 2 of 2 steps, 0.05 steps/s, 0.0 s left, loss 9.12",
    ]
    assert all(logging.PROGRESS.match(line)[2] in "12" for line in lines)

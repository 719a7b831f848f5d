"""Which training is the newest: track, status and score have one answer."""

from __future__ import annotations

import os
import shutil

import pytest

from helpers.tracked import Results
from mlcd.commands.score import _folder
from mlcd.commands.status.look import tail
from mlcd.commands.status.training import newest as shown
from mlcd.commands.track.runs import newest_training
from mlcd.data.trainings import newest


def aged(results: Results, seconds: int) -> None:
    """Let the files of a training be so old."""
    for path in (results.state / "metrics.jsonl", results.state / "checkpoints"):
        stamp = path.stat().st_mtime - seconds
        os.utime(path, (stamp, stamp))


@pytest.fixture
def old(tmp_path) -> Results:
    made = Results(tmp_path, identity="a" * 16)
    made.log(5, 10)
    aged(made, 1000)
    return made


@pytest.fixture
def new(tmp_path, old) -> Results:
    made = Results(tmp_path, identity="b" * 16)
    made.log(5)
    aged(made, 500)
    return made


def answers(results: Results) -> tuple:
    """What track, status and score look at: the state folder, the step, and the checkpoints."""
    training = newest_training(results.path, "train")
    assert training is not None
    return training.state, shown(results.path, tail).get("step"), _folder(results.folder)


def test_the_training_that_was_written_last_is_the_newest(old, new):
    assert newest(new.folder, "train") == new.state
    assert answers(new) == (new.state, 5, new.state / "checkpoints")
    old.log(15)
    assert answers(new) == (old.state, 15, old.state / "checkpoints")


def test_a_finished_training_is_its_state_not_the_copies_beside_the_weights(old, new):
    shutil.copyfile(new.state / "metrics.jsonl", new.folder / "metrics.jsonl")
    (new.state / "live.failed").write_text("few.tar: gone\n")
    assert answers(new) == (new.state, 5, new.state / "checkpoints")
    assert shown(new.path, tail)["live_failed"] == "few.tar: gone"


def test_an_older_training_does_not_stand_for_one_whose_state_was_removed(old, new):
    shutil.copyfile(new.state / "metrics.jsonl", new.folder / "metrics.jsonl")
    shutil.rmtree(new.state)
    assert newest(new.folder, "train") == new.folder
    assert answers(new) == (None, 5, new.folder / "checkpoints")


def test_a_training_that_has_begun_is_newer_than_the_finished_one(old, new, tmp_path):
    shutil.copyfile(new.state / "metrics.jsonl", new.folder / "metrics.jsonl")
    third = Results(tmp_path, identity="c" * 16)
    assert answers(third) == (third.state, None, third.state / "checkpoints")


def test_without_a_training_there_is_none(tmp_path):
    (tmp_path / "train" / "state" / "encoder-x").mkdir(parents=True)
    assert newest(tmp_path / "train", "train") is None
    assert newest_training(tmp_path, "train") is None and shown(tmp_path, tail) == {}
    assert _folder(tmp_path / "train") == tmp_path / "train"

"""`mlcd score` by hand: what it is told counts, and what it cannot do is one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.refusals import refused
from mlcd import cli
from mlcd.config import Evaluate
from mlcd.utils.errors import UserError

#: Runs a command and says at which priority it ended.
NICENESS = "import os, sys; from mlcd import cli; cli.main(sys.argv[1:]); print(os.nice(0))"
WITHOUT_KNN = {"datasets": [{"name": "few", "path": "few.tar", "tasks": ["retrieval"]}]}


def score(folder: Path, *options: str) -> list[str]:
    return ["score", str(folder), "--output", str(folder / "scores.jsonl"), *options]


@pytest.mark.parametrize("by", [0, 7])
def test_the_priority_is_lowered_without_a_training_beside_it(tmp_path, by):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", NICENESS, *score(tmp_path, "--nice", str(by))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "holds no checkpoint" in done.stderr
    assert int(done.stdout.split()[-1]) == min(19, os.nice(0) + by)


def test_a_priority_that_there_is_not_is_refused(tmp_path, capsys):
    for by in ("-1", "20"):
        assert cli.main(score(tmp_path, f"--nice={by}")) == 2
        refused(capsys, "--nice: expected 0 to 19")


def test_without_a_data_set_for_it_nothing_can_be_scored(tmp_path, capsys):
    said = "evaluate.live_dataset: no data set of evaluate.datasets has the task knn; add it"
    assert cli.main(score(tmp_path, "--config", json.dumps(WITHOUT_KNN))) == 2
    refused(capsys, said)
    with pytest.raises(UserError, match=said):
        Evaluate.model_validate(WITHOUT_KNN).for_live()

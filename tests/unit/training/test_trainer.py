"""The trainer alone, with a task of its own on one rank and on two: lines, stops, resumes."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

from helpers import trainer_runs
from helpers.trainer_runs import BOUNDARY, END, TOTAL, LineArguments, lines, planned, saved
from mlcd.launch.api import run_gang
from mlcd.launch.options import Resources
from mlcd.training.trainer import last_checkpoint
from mlcd.utils.errors import UserError

TWO, INLINE = Resources(ranks_per_node=2), Resources(launcher="inline")
#: What depends on the machine.
TIMING = ("points_per_s", "data_wait_share", "checksum")


def untimed(run: dict[str, Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in TIMING} for record in lines(run)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """On two ranks: a whole run, one whose rank 1 waits for data, one stopped twice.

    Ranks that are told to stop end, so each stop takes a gang of its own.
    """
    root = tmp_path_factory.mktemp("runs")
    made = {
        "whole": planned(root / "whole"),
        "waiting": planned(root / "waiting", sleep_s=0.05),
        "stopped": planned(root / "stopped"),
    }
    work = [made["whole"], made["waiting"]]
    made["saved"] = []
    for step in (3, BOUNDARY):
        work.append({**made["stopped"], "stop_at": step - 1})
        # Its rank 1 ends once it has saved, as a job that is preempted does.
        with pytest.raises(UserError, match=f"rank 1 of 2 ended with exit status {END}"):
            run_gang(trainer_runs.train_many, {"runs": work}, root / str(step), TWO)
        made["saved"].append(saved(made["stopped"]))
        work = []
    work.append(made["stopped"])
    made["result"] = run_gang(trainer_runs.train_many, {"runs": work}, root / "end", TWO)
    return made


def test_a_line_every_log_every_steps_and_at_the_end_of_a_task(runs: dict[str, Any]) -> None:
    records = lines(runs["whole"])
    assert [record["step"] for record in records] == [4, BOUNDARY, 8, TOTAL]
    assert [record["epoch"] for record in records] == [0, 1, 1, 1]
    for record in records:
        assert tuple(record) == ("step", "epoch", "loss", "logged", *TIMING)
        # The task was told that this step counts.
        assert record["logged"] == 1 and record["points_per_s"] > 0
    assert list((Path(runs["whole"]["output"]) / "tensorboard").glob("events*"))


def test_the_share_of_waiting_is_the_mean_over_all_ranks(runs: dict[str, Any]) -> None:
    """Rank 1 waits for data and rank 0 for rank 1, which is no wait for data."""
    # Near 0 were rank 0's share alone, near 1 the sum or rank 1's; a busy machine stalls any line.
    shares = [record["data_wait_share"] for record in lines(runs["waiting"])]
    assert 0.1 < statistics.median(shares) < 0.7 and max(shares) <= 1
    assert untimed(runs["waiting"]) == untimed(runs["whole"])


def test_all_ranks_save_at_the_step_in_which_one_was_told_to_stop(runs: dict[str, Any]) -> None:
    """At the end of a task as well, before the next one is built."""
    assert runs["saved"] == [["step_00000003"], ["step_00000003", "step_00000007"]]


def test_a_resumed_run_equals_the_uninterrupted_one(runs: dict[str, Any]) -> None:
    assert runs["result"] == [{"steps": TOTAL}]
    assert untimed(runs["stopped"]) == untimed(runs["whole"])
    assert saved(runs["whole"]) == ["step_00000007", "step_00000012"]
    for name in saved(runs["whole"]):
        whole, resumed = (
            Path(runs[run]["state"], "checkpoints", name) for run in ("whole", "stopped")
        )
        names = sorted(path.name for path in whole.iterdir())
        assert names == sorted(path.name for path in resumed.iterdir())
        assert "rank_00001.safetensors" in names
        for file in names:
            assert (resumed / file).read_bytes() == (whole / file).read_bytes(), file
    final = [Path(runs[run]["output"], "line.safetensors") for run in ("whole", "stopped")]
    assert final[0].read_bytes() == final[1].read_bytes()


def test_periodic_checkpoints_and_any_of_them_to_resume_from(tmp_path: Path) -> None:
    run = planned(tmp_path / "whole", checkpoint_every=5)
    run_gang(trainer_runs.train_many, {"runs": [run]}, tmp_path, INLINE)
    assert saved(run) == [f"step_{step:08d}" for step in (5, BOUNDARY, 10, TOTAL)]
    for step in (5, BOUNDARY, 10, TOTAL):
        again = planned(tmp_path / f"from-{step}", checkpoint_every=5)
        name = f"checkpoints/step_{step:08d}"
        shutil.copytree(Path(run["state"], name), Path(again["state"], name))
        run_gang(trainer_runs.train_many, {"runs": [again]}, tmp_path, INLINE)
        assert untimed(again) == [line for line in untimed(run) if line["step"] > step]
        ends = [Path(one["output"], "line.safetensors").read_bytes() for one in (run, again)]
        assert ends[0] == ends[1]
    weight = load_file(Path(run["output"], "line.safetensors"))["weight"]
    assert weight.abs().min() > 0.1


def test_a_loss_that_is_not_finite_names_step_checkpoint_and_fix(tmp_path: Path) -> None:
    late = planned(tmp_path / "late", checkpoint_every=2, infinite_at=4)
    early = planned(tmp_path / "early", infinite_at=0)
    words = r"^line: the loss is not finite at step 5; the last good checkpoint is step_00000004 in"
    with pytest.raises(UserError, match=words + r" .*/late/state/checkpoints; lower line\.lr$"):
        run_gang(trainer_runs.train_many, {"runs": [late]}, tmp_path, INLINE)
    with pytest.raises(UserError, match="not finite at step 1; no checkpoint was written in"):
        run_gang(trainer_runs.train_many, {"runs": [early]}, tmp_path, INLINE)
    assert not Path(late["output"], "line.safetensors").exists()


def test_a_full_gpu_ends_in_one_line_that_says_what_to_set(tmp_path: Path) -> None:
    run = planned(tmp_path, full_at=2)
    words = (
        r"^line: the GPU's memory is full at step 3 \(CUDA out of memory: Tried to allocate 2 GiB"
    )
    with pytest.raises(UserError, match=words + r"\); take fewer points$"):
        run_gang(trainer_runs.train_many, {"runs": [run]}, tmp_path, INLINE)


def test_final_files_come_from_the_last_checkpoint_alone(tmp_path: Path) -> None:
    run = LineArguments.model_validate(planned(tmp_path))
    with pytest.raises(UserError, match="the last checkpoint is gone; rerun the same command"):
        last_checkpoint(run, TOTAL)


def test_arguments_come_back_from_json_typed_and_complete(tmp_path: Path) -> None:
    values = planned(tmp_path)
    run = LineArguments.model_validate(values)
    assert run.section.log_every == 4 and run.checkpoints == tmp_path / "state" / "checkpoints"
    assert run.model_dump(mode="json") == values
    with pytest.raises(ValidationError):
        LineArguments.model_validate({**values, "keeps": 1})

"""Live scores: the process beside rank 0, what it may delay, and what remains of its failure."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from helpers.evaluate_runs import config, evaluate, pack, rows
from helpers.train_stores import arguments, mlcd_train, stores
from mlcd import cli
from mlcd.commands.score.scorer import draw
from mlcd.config import Evaluate
from mlcd.data.checkpoints import steps
from mlcd.launch.live import Live, is_awaited, planned, publish, scoring
from mlcd.utils.errors import UserError
from mlcd.utils.records import line_of, parse_line, read_record

#: A training of 12 steps, scored after each third.
OPTIONS = (
    "--launcher", "inline", "--ranks-per-node", "1", "--epochs", "3", "--batch-size", "16",
    "--embedding-dim", "16", "--image-size", "32", "--log-every", "2", "--warmup-steps", "2",
    "--checkpoint-every", "5", "--workers", "0", "--zero-stage", "0",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Images to train on, and a labeled set."""
    folder = tmp_path_factory.mktemp("live")
    pack(folder / "few.tar", rows())
    return folder


@pytest.fixture(scope="module")
def paths(place):
    return stores(place / "stores")


def section(place: Path, **keys: object) -> str:
    return config(place, live_every=3, **keys)


def trained(paths, output: Path, *options: str) -> Path:
    """Train to the end as one rank, in a process of its own: DeepSpeed begins once in each."""
    log = output.with_suffix(".log")
    process = mlcd_train(paths, output, *OPTIONS, *options, log=log)
    assert process.wait(280) == 0, log.read_text()[-3000:]
    return output


@pytest.fixture(scope="module")
def off(paths, place) -> Path:
    return trained(paths, place / "off", "--live", config(place))


def untimed(path: Path) -> list[dict]:
    lines = [parse_line(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in one.items() if k not in ("images_per_s", "data_wait_share")}
            for one in lines]  # fmt: skip


def weights(output: Path) -> list[bytes]:
    return [(output / name).read_bytes() for name in ("encoder.safetensors", "encoder.json")]


def lines(path: Path) -> list[dict]:
    return [parse_line(line) for line in path.read_text().splitlines()]


def test_a_training_is_the_same_with_live_scores_and_without(paths, place, off, tmp_path):
    """Weights and numbers of steps; whether its scores come in time is the machine's to say."""
    on = trained(paths, tmp_path / "on", "--live", section(place), "--live-wait", "0")
    assert weights(on) == weights(off)
    assert untimed(on / "metrics.jsonl") == untimed(off / "metrics.jsonl")
    (state,) = on.glob("state/encoder-*")
    assert (state / "live.log").exists() and not (state / "live.failed").exists()
    # No more checkpoints stay than without.
    assert len(steps(state / "checkpoints")) == len(steps(off_checkpoints(off))) == 2


def off_checkpoints(off: Path) -> Path:
    return next(off.glob("state/encoder-*/checkpoints"))


def test_beside_a_training_scores_that_stand_are_kept_and_the_others_come(place, off, tmp_path):
    """It ends by itself when the training has said that it is over."""
    output = tmp_path / "live.jsonl"
    command = [sys.executable, "-m", "mlcd", "score", str(off_checkpoints(off)), "--follow",
               "--output", str(output), "--config", section(place), "--device", "cpu"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    follow_to_the_end(command, environment, output, 2)
    first, second = lines(output)
    assert (first["step"], second["step"]) == (10, 12)
    assert set(first) == {
        "step", "set", "dataset", "train_images", "test_images", "chance", "knn_1", "knn_5",
    }  # fmt: skip
    output.write_text(line_of({**first, "knn_1": 0.123}))
    follow_to_the_end(command, environment, output, 2)
    assert lines(output) == [{**first, "knn_1": 0.123}, second]


def follow_to_the_end(command: list[str], environment, output: Path, count: int) -> None:
    """Say `end` once so many lines are there, and see the process end well."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
    assert process.stdin
    process.stdin.write(b"end\n")
    process.stdin.flush()
    assert process.wait(400) == 0
    process.stdin.close()
    assert len(lines(output)) == count


def test_a_score_is_that_of_stage_evaluate(place, off, tmp_path):
    """With all images of the set, and the encoder of the last step."""
    output = tmp_path / "scores.jsonl"
    command = ["score", str(off), "--output", str(output), "--device", "cpu"]
    assert cli.main([*command, "--config", config(place, live_every=3), "--every", "12"]) == 0
    (line,) = lines(output)
    given = config(place, models=["trained"], dataset={"tasks": ["knn"], "tags_field": None})
    evaluate("--encoder", off, "--output", tmp_path / "evaluate", "--config", given)
    judged = read_record(tmp_path / "evaluate" / "trained.json", "evaluate")["datasets"]["few"]
    assert {name: line[name] for name in ("knn_1", "knn_5")} == judged["scores"]
    assert line["chance"] == judged["chance"]["knn_1"] and line["train_images"] == 40
    missing = [*command, "--config", config(place), "--every", "7"]
    missing[3] = str(tmp_path / "other.jsonl")
    assert cli.main(missing) == 2


def test_a_scorer_that_fails_is_told_and_ends_no_training(place, off, tmp_path, monkeypatch):
    """Its set has no classes. The block stands for the steps of a training."""
    monkeypatch.setenv("RANK", "0")
    (state,) = off.glob("state/encoder-*")
    shutil.copytree(state / "checkpoints", tmp_path / "checkpoints")
    given = json.loads(section(place, dataset={"label_field": None, "tags_field": None}))
    live = Live(config=json.dumps(given), every=3, device="cpu", threads=1, nice=0)
    failed = tmp_path / "live.failed"
    with scoring(live, tmp_path):
        end = time.monotonic() + 200
        while not failed.exists() and time.monotonic() < end:
            time.sleep(0.05)
    assert "few.tar: no images" in failed.read_text()
    assert not (tmp_path / "live.jsonl").exists()


def test_a_failure_after_the_last_step_is_told_too(place, tmp_path, monkeypatch):
    """A short training is over before its scorer has begun."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(
        sys, "executable", script(tmp_path, "read end; echo 'x ERROR no; do'; exit 2")
    )
    (tmp_path / "live.log").write_text("x ERROR of an earlier start\n")
    with scoring(Live(config="{}", every=3, device="cpu", threads=1, nice=0), tmp_path):
        pass
    assert (tmp_path / "live.failed").read_text() == "no; do\n"
    monkeypatch.setattr(sys, "executable", script(tmp_path, "read end; exit 2"))
    with scoring(Live(config="{}", every=3, device="cpu", threads=1, nice=0), tmp_path):
        pass
    assert (tmp_path / "live.failed").read_text() == "ended with exit status 2\n"


@pytest.mark.parametrize("fails", [False, True])
def test_a_scorer_that_hangs_is_ended_with_the_training(tmp_path, monkeypatch, caplog, fails):
    """Also one that does not look at its input, however the training ends."""
    monkeypatch.setenv("RANK", "0")
    pid = tmp_path / "pid"
    monkeypatch.setattr(sys, "executable", script(tmp_path, f"echo $$ > {pid}; exec sleep 600"))
    live = Live(config="{}", every=3, device="cpu", threads=1, wait=0.1)
    with contextlib.suppress(KeyError), scoring(live, tmp_path):
        while not pid.exists() or not pid.read_text():
            time.sleep(0.01)
        if fails:
            raise KeyError
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not (tmp_path / "live.failed").exists()
    assert ("are given up" in caplog.text) != fails


def script(folder: Path, words: str) -> str:
    """Return a program that does `words` of a shell, whatever it is called with."""
    path = folder / "script"
    path.write_text(f"#!/bin/sh\n{words}\n")
    path.chmod(0o755)
    return str(path)


def test_only_rank_0_scores(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with scoring(Live(config="{}", every=3, device="cpu", threads=1, nice=0), tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_scorer_ends_as_soon_as_the_training_is_gone(place, tmp_path):
    command = [sys.executable, "-m", "mlcd", "score", str(tmp_path), "--follow",
               "--output", str(tmp_path / "live.jsonl"), "--config", section(place)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
    assert process.stdin
    process.stdin.close()
    assert process.wait(120) == 0 and not (tmp_path / "live.jsonl").exists()


def test_checkpoints_wait_for_their_score_until_they_have_it_or_it_failed(tmp_path):
    assert is_awaited(6, 3, tmp_path) and not is_awaited(5, 3, tmp_path)
    (tmp_path / "live.jsonl").write_text(line_of({"step": 6}))
    assert not is_awaited(6, 3, tmp_path) and is_awaited(9, 3, tmp_path)
    (tmp_path / "live.failed").touch()
    assert not is_awaited(9, 3, tmp_path)


def test_scores_of_an_earlier_training_go_and_files_of_others_stay(tmp_path):
    state, output = tmp_path / "state", tmp_path / "output"
    state.mkdir()
    output.mkdir()
    line = line_of({"step": 3, "dataset": "few", "chance": 0.5})
    (output / "live.jsonl").write_text(line)
    publish(state, output)
    assert not (output / "live.jsonl").exists()
    (output / "live.jsonl").write_text('{"mine": 1}\n')
    publish(state, output)
    assert (output / "live.jsonl").exists()
    (state / "live.jsonl").write_text(line)
    publish(state, output)
    assert (output / "live.jsonl").read_text() == line


def test_the_data_set_is_looked_at_before_ranks_start(paths, place, tmp_path):
    given = arguments(paths, tmp_path, live=section(place))
    found = planned(given)
    assert found is not None and found.every == 3
    assert json.loads(found.config)["datasets"][0]["path"] == str((place / "few.tar").resolve())
    given.live = section(place, dataset={"path": str(tmp_path / "gone.tar")})
    with pytest.raises(UserError, match=r"gone\.tar"):
        planned(given)
    given.live, given.live_threads = section(place), 0
    with pytest.raises(UserError, match="--live-threads"):
        planned(given)


def test_the_draw_is_bounded_seeded_and_in_the_order_of_the_set(place):
    (dataset,) = Evaluate.model_validate(json.loads(config(place))).datasets
    some = [sample.key for sample in draw(dataset, 20, 0)]
    assert some == sorted(some) and len(set(some)) == 20
    assert [sample.key for sample in draw(dataset, 20, 0)] == some
    assert [sample.key for sample in draw(dataset, 20, 1)] != some
    assert set(some) < {sample.key for sample in draw(dataset, 30, 0)}
    assert len(draw(dataset, 1000, 0)) == 60


def test_after_a_kill_scores_go_on_and_weights_are_the_same(paths, place, off, tmp_path):
    """Killed once a checkpoint is there: its scorer ends by itself, however busy it is."""
    output = tmp_path / "killed"
    options = (*OPTIONS, "--live", section(place), "--live-wait", "0")
    first = mlcd_train(paths, output, *options, log=tmp_path / "first.log")
    end = time.monotonic() + 250
    while not (found := list(output.glob("state/encoder-*/checkpoints/step_*"))):
        assert time.monotonic() < end and first.poll() is None
        time.sleep(0.01)
    state = found[0].parents[1]
    scorers = [child for child in psutil.Process(first.pid).children(recursive=True)
               if "score" in child.cmdline()]  # fmt: skip
    first.kill()
    first.wait()
    assert len(scorers) == 1
    _, alive = psutil.wait_procs(scorers, 100)
    assert not alive
    # As if it had come in time.
    kept = line_of({**score_of(place, state), "knn_1": 0.123})
    (state / "live.jsonl").write_text(kept)
    trained(paths, output, *options)
    assert weights(output) == weights(off)
    told = lines(output / "live.jsonl")
    assert (output / "live.jsonl").read_text().startswith(kept)
    assert [one["step"] for one in told] == sorted({one["step"] for one in told})
    assert not (state / "live.failed").exists()


def score_of(place: Path, state: Path) -> dict:
    """Return the first score of the checkpoints that stand."""
    output = state.parent / "by-hand.jsonl"
    words = ["score", str(state / "checkpoints"), "--output", str(output), "--device", "cpu"]
    assert cli.main([*words, "--config", section(place)]) == 0
    return lines(output)[0]

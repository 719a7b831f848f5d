"""`mlcd track`: each number of a training reaches a tool once, whatever happens in between."""

from __future__ import annotations

import importlib.util
import json
import shutil
import threading
from pathlib import Path

import pytest

from helpers.refusals import refused
from helpers.tracked import IDENTITY, SECTION, Results, record
from mlcd import cli
from mlcd.commands.status.alive import writer
from mlcd.commands.track.follow import Follower, follow
from mlcd.commands.track.runs import flat, newest_training
from mlcd.commands.track.target import target_of
from mlcd.launch import lease
from mlcd.launch.gang_files import Record, try_folder
from mlcd.launch.lease import Lease
from mlcd.utils.records import write_record

#: Exit statuses.
NOT_DONE, REFUSED = 4, 2


@pytest.fixture
def results(tmp_path) -> Results:
    """A training of 20 steps with two live scores, not at its end."""
    made = Results(tmp_path / "project")
    made.log(*range(5, 21, 5))
    made.score(10, 20)
    return made


def track(results: Results, *options: str, to: str = "tensorboard") -> int:
    try:
        return cli.main(["track", str(results.path), "--to", to, "--once", *options])
    except SystemExit as end:
        return int(end.code or 0)


def scalars(folder: Path, stream: str) -> dict[str, list[tuple[int, float]]]:
    """Read event files back as TensorBoard does."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / f"train-{IDENTITY[:8]}" / stream), {"scalars": 0})
    found.Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def steps(results: Results, stream: str = "train", tag: str = "train/loss") -> list[int]:
    folder = results.path.parent / "track" / "tensorboard"
    return [step for step, _ in scalars(folder, stream)[tag]]


def test_tensorboard_reads_every_number_back(results):
    results.finish(20)
    assert track(results) == 0
    folder = results.path.parent / "track" / "tensorboard"
    train = scalars(folder, "train")
    assert set(train) == {"train/epoch", "train/loss", "train/lr"}
    for name in ("loss", "lr"):
        expected = [(step, pytest.approx(record(step)[name])) for step in (5, 10, 15, 20)]
        assert train[f"train/{name}"] == expected
    assert scalars(folder, "live")["live/few/knn_5"] == [
        (10, pytest.approx(0.1)), (20, pytest.approx(0.05)),
    ]  # fmt: skip
    assert scalars(folder, "evaluate") == {
        "evaluate/pixels/few/knn_5": [(20, 0.25)], "evaluate/trained/few/knn_5": [(20, 0.5)],
    }  # fmt: skip


def test_a_second_call_ships_what_is_new_alone(results):
    assert track(results) == NOT_DONE
    files = sorted((results.path.parent / "track").rglob("events*"))
    assert track(results) == NOT_DONE
    assert sorted((results.path.parent / "track").rglob("events*")) == files
    results.log(25)
    results.score(30)
    track(results)
    assert steps(results) == [5, 10, 15, 20, 25]
    assert steps(results, "live", "live/few/knn_5") == [10, 20, 30]


def test_a_training_that_resumes_writes_steps_twice_and_they_are_shipped_once(results, tmp_path):
    """In one process, which has read beyond the checkpoint, and in two."""
    kind = target_of("tensorboard")
    folder = results.path.parent / "track" / "tensorboard"
    follower = Follower(results.path, ["train"], kind, folder)
    follower.look()
    results.resume(10)
    follower.look()
    results.log(15)
    follower.look()
    results.log(20, 25)
    follower.look()
    follower.close()
    assert steps(results) == [5, 10, 15, 20, 25]
    results.resume(15)
    track(results)
    results.log(20, 25, 30)
    track(results)
    assert steps(results) == [5, 10, 15, 20, 25, 30]


def test_a_kill_between_shipping_and_noting_it_neither_doubles_nor_loses(results):
    track(results)
    cursor = next((results.path.parent / "track").rglob(f"shipped/train-{IDENTITY[:8]}.json"))
    before = cursor.read_text()
    results.log(25, 30)
    results.score(30)
    track(results)
    assert json.loads(cursor.read_text())["shipped"] == {"train": 30, "live": 30}
    cursor.write_text(before)
    track(results)
    assert steps(results) == [5, 10, 15, 20, 25, 30]
    assert steps(results, "live", "live/few/knn_5") == [10, 20, 30]


def shown(folder: Path) -> list[tuple[int, str, float]]:
    """Return what TensorBoard's own server shows of a folder: a lower step drops all after it."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: list[tuple[int, str, float]] = []
    for path in sorted(folder.glob("events*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                number = float(value.tensor.float_val[0])
                found = [one for one in found if one[0] < event.step or one[1] != value.tag]
                found.append((event.step, value.tag, pytest.approx(number)))
    return found


@pytest.mark.parametrize("one_process", [True, False])
def test_scores_of_lower_steps_come_after_a_resume(results, one_process):
    """Checkpoints that were gone before they were scored are written, and scored, again."""
    folder = results.path.parent / "track" / "tensorboard"
    live = folder / f"train-{IDENTITY[:8]}" / "live"
    follower = Follower(results.path, ["train"], target_of("tensorboard"), folder)

    def look() -> None:
        if one_process:
            follower.look()
        else:
            track(results)

    look()
    results.resume(10)
    results.score_late(15, 5)
    look()
    results.score_late(18, 30)
    look()
    look()
    follower.close()
    expected = [(step, pytest.approx(1 / step)) for step in (5, 10, 15, 18, 20, 30)]
    assert scalars(folder, "live")["live/few/knn_5"] == expected
    assert [one[::2] for one in shown(live) if one[1] == "live/few/knn_5"] == expected
    cursor = next((results.path.parent / "track").rglob("shipped/*.json"))
    assert json.loads(cursor.read_text())["scores"] == [5, 10, 15, 18, 20, 30]
    # Once all of it is there, nothing is written.
    files = sorted(live.iterdir())
    track(results)
    assert sorted(live.iterdir()) == files


def test_a_score_that_a_kill_cut_off_is_written_whole(results):
    folder = results.path.parent / "track" / "tensorboard"
    track(results)
    live = folder / f"train-{IDENTITY[:8]}" / "live"
    (path,) = live.iterdir()
    path.write_bytes(path.read_bytes()[:-20])  # the last number of the last step
    results.score_late(15)
    track(results)
    for name in ("chance", "knn_5"):
        steps = [step for step, _ in scalars(folder, "live")[f"live/few/{name}"]]
        assert steps == [10, 15, 20]


def test_what_the_cursor_names_is_never_removed_outside_its_folder(results):
    """A cursor is a file like any other: its words are no paths."""
    pytest.importorskip("wandb")
    folder = results.path.parent / "track" / "wandb"
    victim = results.path.parent / "offline-run-victim"
    victim.mkdir()
    training = newest_training(results.path, "train")
    run = training and training.run()
    assert run is not None
    for name in ("../../../offline-run-victim", "offline-run-/../../../../offline-run-victim"):
        target = target_of("wandb")(run, folder, {}, set(), {"open": name})
        target._remove_unfinished()  # type: ignore[attr-defined]
        assert victim.exists() and target.memory == {}


def test_a_missing_library_is_one_line_with_the_command(results, capsys):
    if importlib.util.find_spec("trackio"):
        pytest.skip("trackio is installed here")
    assert track(results, to="trackio") == REFUSED
    refused(capsys, "--to trackio: its library is not installed; pip install 'mlcd[trackio]'")


def test_a_torn_line_waits_and_a_damaged_one_is_named(results, capsys):
    path = results.state / "metrics.jsonl"
    whole = path.read_bytes()
    results.log(25)
    line = path.read_bytes()[len(whole) :]
    path.write_bytes(whole + line[:-9])
    track(results)
    assert steps(results) == [5, 10, 15, 20]
    path.write_bytes(whole + line)
    track(results)
    assert steps(results) == [5, 10, 15, 20, 25]
    path.write_bytes(whole + line.replace(b'"loss": 75', b'"loss": 57'))
    assert track(results) == REFUSED
    refused(capsys, str(path), "damaged in the line before byte")


def test_a_damaged_cursor_is_named(results, capsys):
    status = track(results)
    cursor = next((results.path.parent / "track").rglob("shipped/*.json"))
    whole = json.loads(cursor.read_text())
    for text in ('{"shipped": []}', '{"memory": {}}', '{"shipped": {}}'):
        cursor.write_text(text)
        assert track(results) == REFUSED
        refused(capsys, str(cursor), "damaged; remove it to ship the training again")
    # As it was before live scores of lower steps were shipped.
    del whole["scores"]
    cursor.write_text(json.dumps(whole))
    assert track(results) == status


def test_two_processes_do_not_ship_one_training(results, capsys):
    track(results)
    cursor = next((results.path.parent / "track").rglob("shipped/*.json"))
    held = Lease(cursor.parent / "state" / f"{cursor.name}.lease", "x", [cursor])
    assert held.attempt() is None
    try:
        assert track(results) == REFUSED
        refused(capsys, "ships this training; wait, or end it")
    finally:
        held.release()
    assert track(results) == NOT_DONE


def test_it_follows_until_the_writer_has_left(results):
    """Lines that are written while it waits are shipped before it ends."""
    follower = Follower(
        results.path, ["train"], target_of("tensorboard"),
        results.path.parent / "track" / "tensorboard",
    )  # fmt: skip
    entered, told = threading.Event(), threading.Event()

    def train() -> None:
        with lease.writing(results.folder, "work", files=[results.state / "metrics.jsonl"]):
            entered.set()
            told.wait()
            results.log(25, 30)
            results.finish(30)

    thread = threading.Thread(target=train)
    thread.start()
    entered.wait()
    assert "process" in writer(results.path)
    threading.Timer(0.3, told.set).start()
    try:
        assert follow(follower, once=False, every=0.1) is True
    finally:
        follower.close()
        thread.join()
    assert writer(results.path) == ""
    assert steps(results) == [5, 10, 15, 20, 25, 30]


def test_a_gang_that_outlives_its_driver_still_writes(results, tmp_path):
    home = results.folder / "state" / "encoder.safetensors.gang"
    gang = Record.new(home, "slurm", "train", 2, "work")
    files = try_folder(Path(gang.folder), 0)
    files.mkdir(parents=True)
    gang.write(home)
    assert writer(results.path) == ""
    (files / "rank-0.usage.json").write_text("{}")
    assert "slurm job" in writer(results.path)
    for rank in range(2):
        (files / f"rank-{rank}.done").touch()
    assert writer(results.path) == ""


def test_another_config_is_another_training(results):
    track(results)
    other = Results(results.path.parent, identity="f" * 16)
    other.log(5)
    track(other)
    folder = results.path.parent / "track" / "tensorboard"
    names = {path.name for path in folder.iterdir()}
    assert names == {f"train-{IDENTITY[:8]}", "train-ffffffff", "shipped"}


def test_without_its_state_folder_a_training_has_its_final_files(results):
    results.finish(20)
    shutil.copy(results.state / "metrics.jsonl", results.folder / "metrics.jsonl")
    shutil.rmtree(results.folder / "state")
    training = newest_training(results.path, "train")
    assert training is not None
    run = training.run()
    assert run is not None and run.config["lr"] == SECTION["lr"] and run.project == "project"
    assert list(training.new()["train"]) == [5, 10, 15, 20] and training.is_done()


def test_scores_of_another_encoder_are_not_shipped(results):
    results.finish(20)
    said = json.loads((results.folder / "encoder.json").read_text())
    del said["checksum"]
    write_record(results.folder / "encoder.json", {**said, "sha256": "cd" * 32})
    training = newest_training(results.path, "train")
    assert training is not None and training.new()["evaluate"] == {}


def test_nothing_to_ship_is_said(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    command = ["track", str(tmp_path / "results"), "--to", "tensorboard", "--once"]
    assert cli.main(command) == REFUSED
    refused(capsys, "no training has written numbers here")
    command[1] = str(tmp_path / "other")
    assert cli.main(command) == REFUSED
    refused(capsys, "no such folder")


def test_nested_keys_become_flat():
    values = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": True}
    assert flat(values) == {"a.b": 1, "a.c": "[1, 2]", "d": "null", "e": True}

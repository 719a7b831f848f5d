"""Saved state and the code that made it: taken, refused, accepted, discarded."""

import argparse
import json

import pytest

from helpers.local_gangs import driver, ranks_gone
from mlcd.commands import accept
from mlcd.launch import resume
from mlcd.launch.gang_files import gang_folder
from mlcd.utils.errors import UserError


@pytest.fixture
def code(monkeypatch):
    """Code as a dict module → hash; a change of it is a change of code."""
    modules = {"losses": "a", "data": "b"}

    def record(stage):
        shapes = {name: {"f": f"{value} {value}"} for name, value in modules.items()}
        return {"stage": stage, "hash": "".join(modules.values()), "modules": shapes}

    monkeypatch.setattr(resume, "code_record", record)
    monkeypatch.setattr(resume, "code_hash", lambda stage: record(stage)["hash"])
    return modules


@pytest.fixture
def output(tmp_path):
    return tmp_path / "train"


@pytest.fixture
def state(output):
    folder = output / "state" / "encoder-0123"
    folder.mkdir(parents=True)
    return folder


def save(state, step):
    (state / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)


def accepting(path, **options):
    accept.run(
        argparse.Namespace(**{"output": str(path), "discard": False, "reason": "", **options})
    )


def test_the_same_code_resumes(code, state, output):
    for step in (1, 2):
        resume.claim(state, "train", output, gang_folder(output))
        resume.check(state)
        save(state, step)
    assert resume.newest_step(state) == 2 and resume.accepted(state) == []


def test_other_code_starts_afresh_where_nothing_is_saved(code, state, output):
    resume.claim(state, "train", output, gang_folder(output))
    (state / "index").mkdir()
    code["data"] = "c"
    # A rank that had waited in the queue meanwhile.
    with pytest.raises(UserError, match=r"begun by other code \(data\), .* run the same command"):
        resume.check(state)
    resume.claim(state, "train", output, gang_folder(output))
    assert [path.name for path in state.iterdir()] == [resume.CODE]
    resume.check(state)


def test_other_code_starts_afresh_where_the_work_is_finished(code, state, output):
    resume.claim(state, "train", output, gang_folder(output))
    save(state, 9)
    resume.finish(state)
    code["data"] = "c"
    resume.claim(state, "train", output, gang_folder(output))
    assert resume.newest_step(state) is None
    # It is this code's now, and unfinished: the next change asks again.
    save(state, 1)
    code["data"] = "d"
    with pytest.raises(UserError, match="step 1 was saved by other code"):
        resume.claim(state, "train", output, gang_folder(output))


def test_other_code_is_refused_with_the_modules_that_differ(code, state, output):
    resume.claim(state, "train", output, gang_folder(output))
    save(state, 1200)
    code["losses"] = "c"
    for call in (
        lambda: resume.claim(state, "train", output, gang_folder(output)),
        lambda: resume.check(state),
    ):
        with pytest.raises(UserError) as caught:
            call()
        message = str(caught.value)
        assert "step 1200 was saved by other code (losses)" in message and "\n" not in message
        assert f"mlcd accept {output};" in message and f"accept --discard {output}" in message
    assert resume.newest_step(state) == 1200


def test_an_accepted_change_resumes_and_is_on_record(code, state, output, capsys):
    resume.claim(state, "train", output, gang_folder(output))
    save(state, 7)
    code["losses"] = "c"
    accepting(output, reason="same numbers")
    assert "losses: f" in capsys.readouterr().out
    resume.claim(state, "train", output, gang_folder(output))
    resume.check(state)
    (entry,) = resume.accepted(state)
    assert (entry["stage"], entry["step"], entry["reason"]) == ("train", 7, "same numbers")
    assert (entry["old"], entry["new"], entry["modules"]) == ("ab", "cb", {"losses": ["f"]})
    lines = (output / resume.ACCEPTED).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [entry]
    # The next change asks again, and so does the way back.
    for value in ("d", "a"):
        code["losses"] = value
        with pytest.raises(UserError, match="saved by other code"):
            resume.claim(state, "train", output, gang_folder(output))


def test_a_record_that_was_cut_off_is_completed(code, state, output):
    resume.claim(state, "train", output, gang_folder(output))
    save(state, 7)
    code["losses"] = "c"
    accepting(state)
    (output / resume.ACCEPTED).unlink()
    for _ in range(2):
        resume.claim(state, "train", output, gang_folder(output))
        assert len((output / resume.ACCEPTED).read_text().splitlines()) == 1


def test_discarded_state_is_gone_and_nothing_else(code, state, output):
    resume.claim(state, "train", output, gang_folder(output))
    save(state, 7)
    (state.parent / "other").mkdir()
    (output / "encoder.json").write_text("{}")
    code["losses"] = "c"
    accepting(output, discard=True)
    assert list(state.iterdir()) == []
    assert (state.parent / "other").exists() and (output / "encoder.json").exists()
    resume.claim(state, "train", output, gang_folder(output))


def test_emptying_that_was_cut_off_leaves_nothing_to_resume_from(code, state, output, monkeypatch):
    resume.claim(state, "train", output, gang_folder(output))
    save(state, 7)
    code["losses"] = "c"

    def die(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(resume.shutil, "rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        resume.discard(state)
    monkeypatch.undo()
    assert resume.newest_step(state) == 7
    assert json.loads((state / resume.CODE).read_text())["finished"]


def test_state_without_a_record_is_not_taken_over_silently(code, state, output):
    save(state, 3)
    with pytest.raises(UserError, match="unknown version"):
        resume.claim(state, "train", output, gang_folder(output))
    accepting(output)
    resume.claim(state, "train", output, gang_folder(output))
    assert resume.accepted(state)[0]["step"] == 3


def test_a_clustering_is_named_by_its_file(code, tmp_path):
    output = tmp_path / "clusters" / "centroids.h5"
    state = output.parent / "state" / "centroids-0123"
    state.mkdir(parents=True)
    resume.claim(state, "cluster", output, gang_folder(output))
    (state / "iteration-000004.h5").touch()
    code["data"] = "c"
    with pytest.raises(UserError, match=r"step 4 .*\(data\).* mlcd accept .*centroids\.h5;"):
        resume.claim(state, "cluster", output, gang_folder(output))
    accepting(output)
    resume.claim(state, "cluster", output, gang_folder(output))
    assert (output.parent / resume.ACCEPTED).exists()


def test_a_live_job_of_other_code_is_neither_taken_nor_cleared(code, state, output, monkeypatch):
    resume.claim(state, "train", output, gang_folder(output))
    (state / "index").mkdir()
    code["data"] = "c"
    job = argparse.Namespace(describe=lambda: "job 77", how_to_end=lambda: "scancel 77")
    asked = []
    monkeypatch.setattr(resume, "live_job", lambda home: asked.append(home) or job)
    with pytest.raises(UserError, match="job 77, of other code, still works there"):
        resume.claim(state, "train", output, gang_folder(output))
    assert (state / "index").exists() and asked == [gang_folder(output)]


def test_a_live_gang_of_other_code_is_ended_if_that_was_asked_for(code, state, output, tmp_path):
    resume.claim(state, "train", output, tmp_path)
    (state / "index").mkdir()
    driver(tmp_path, 60).kill()
    code["data"] = "c"
    with pytest.raises(UserError, match=r"process \d+ on .*, of other code, still works there"):
        resume.claim(state, "train", output, tmp_path)
    assert not ranks_gone(tmp_path, 1)
    resume.claim(state, "train", output, tmp_path, end_other=True)
    assert ranks_gone(tmp_path)
    assert [path.name for path in state.iterdir()] == [resume.CODE]


def test_an_output_whose_name_begins_like_another_is_not_meant(code, tmp_path):
    for name in ("centroids", "centroids-big"):
        state, output = tmp_path / "state" / f"{name}-0123", tmp_path / f"{name}.h5"
        state.mkdir(parents=True)
        resume.claim(state, "cluster", output, gang_folder(output))
        (state / "iteration-000004.h5").touch()
    code["data"] = "c"
    assert resume.waiting(tmp_path / "centroids.h5") == [tmp_path / "state" / "centroids-0123"]


def test_what_is_not_there_is_said(code, state, output):
    resume.claim(state, "train", output, gang_folder(output))
    save(state, 1)
    with pytest.raises(UserError, match="nothing to accept"):
        accepting(output)

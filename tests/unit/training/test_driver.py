"""What the driver of a training makes of the files that lie where its results belong."""

import hashlib
from types import SimpleNamespace

import pytest

from helpers.local_gangs import save_nothing
from mlcd.config.train import Train
from mlcd.launch.options import Resources
from mlcd.stages.train.arguments import TrainArguments
from mlcd.training import driver
from mlcd.training.driver import _are_of
from mlcd.utils.errors import UserError
from mlcd.utils.records import write_record


@pytest.fixture
def files(tmp_path):
    weights, description = tmp_path / "encoder.safetensors", tmp_path / "encoder.json"
    weights.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    section = Train().model_dump(mode="json")
    write_record(description, {"section": section, "sha256": digest})
    return weights, description


def test_files_of_the_section_that_was_asked_for_are_taken(files):
    assert _are_of(files, SimpleNamespace(section=Train()))


@pytest.mark.parametrize("how", ["section", "weights", "none", "damaged", "a list"])
def test_files_of_another_run_are_not(files, how):
    weights, description = files
    asked = Train()
    if how == "section":
        asked = Train(seed=Train().seed + 1)
    elif how == "weights":
        weights.write_bytes(b"of another run")
    elif how == "none":
        weights.unlink()
    else:
        description.write_text("{" if how == "damaged" else "[]")
    assert not _are_of(files, SimpleNamespace(section=asked))


def test_a_finished_gang_whose_checkpoint_is_gone_is_not_taken_again(tmp_path):
    state = tmp_path / "state" / "encoder-0123456789abcdef"
    state.mkdir(parents=True)
    arguments = TrainArguments(
        section=Train(), identity="x", centroids=tmp_path / "c.h5", num_classes=1, state=state,
        output=tmp_path, device="cpu", micro_batch=0, high_res_micro_batch=0, memory_limit=None,
        workers=0, checkpoint_every=1, keep=1,
    )  # fmt: skip
    names = ("encoder.safetensors", "encoder.json")
    for calls in ("x", "xx"):
        with pytest.raises(UserError, match="the last checkpoint is gone; rerun the same command"):
            driver.run(save_nothing, arguments, tmp_path, names, Resources(), print)
        assert (tmp_path / "calls").read_text() == calls

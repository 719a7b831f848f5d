"""metrics.jsonl of an unfinished run: what is kept, cut away, and refused."""

from __future__ import annotations

import json

import pytest

from mlcd.stages.report.curves import read_metrics
from mlcd.training.metrics import MetricsFile, all_lines
from mlcd.utils.errors import UserError
from mlcd.utils.records import line_of


def resumed(path, step: int) -> list[int]:
    MetricsFile(path, path.parent / "tensorboard", step, "train").close()
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line_of({"step": step, "loss": 1.5}) for step in (2, 4, 6)))
    return path


def test_lines_after_the_checkpoint_are_cut_away(path):
    assert resumed(path, 4) == [2, 4]
    assert resumed(path, 0) == []


def test_a_last_line_that_a_kill_cut_short_is_cut_away(path):
    path.write_text(path.read_text()[:-5])
    assert resumed(path, 9) == [2, 4]


@pytest.mark.parametrize(
    "damage",
    [
        (b"}\n{", b"|\n{"),
        (b'"step": 4', b'"stop": 4'),
        (b"{", b"\xff"),
        (b"1.5", b"1.7"),
        (b"checksum", b"checksun"),
    ],
)
def test_a_damaged_line_is_named(path, damage):
    path.write_bytes(path.read_bytes().replace(*damage, 1))
    with pytest.raises(UserError, match=r"metrics\.jsonl: line [12] is damaged; remove the file"):
        resumed(path, 9)


def test_a_finished_run_has_a_line_of_its_last_step(path):
    whole = path.read_text()
    assert all_lines(path, 6) == whole
    for cut in (whole[:-1], "".join(whole.splitlines(keepends=True)[:2])):
        path.write_text(cut)
        with pytest.raises(UserError, match="ends before step 6, so it is damaged"):
            all_lines(path, 6)
    path.unlink()
    assert all_lines(path, 6) == ""


def test_a_page_takes_no_damaged_number(path):
    assert read_metrics(str(path), "train")["loss"].tolist() == [1.5] * 3
    path.write_text(path.read_text().replace("1.5", "1.7", 1))
    with pytest.raises(UserError, match="line 1 is no metrics with a step, or damaged"):
        read_metrics(str(path), "train")

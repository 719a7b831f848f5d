"""`mlcd audit replay`: stages that take seconds are run again, and what differs is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers.audit_changes import audit
from helpers.builders import jpeg
from helpers.checkout import serving
from helpers.refusals import refused
from mlcd import cli
from mlcd.commands.audit import nearness
from mlcd.commands.audit.making import Making, making_of
from mlcd.config import Download, Prepare
from mlcd.utils.records import line_of, write_csv, write_record

ROWS = 6


class Small:
    """A run of prepare and download alone, sealed; `site` is served while it is used."""

    def __init__(self, folder: Path, site: Path) -> None:
        self.site, self.folder = site, folder
        self.results = folder / "results"
        site.mkdir()
        for row in range(ROWS):
            (site / f"{row}.jpg").write_bytes(jpeg(row))

    def make(self, url: str) -> None:
        self.url = url
        rows = [{"url": f"{url}/{row}.jpg", "caption": f"image {row}"} for row in range(ROWS)]
        (self.folder / "lists").mkdir()
        pd.DataFrame(rows).to_parquet(self.folder / "lists" / "few.parquet", index=False)
        prepare = Prepare(chunk_rows=4, hash_column=None)
        download = Download(rows_per_tar=3, passes=1)
        for part in (0, 1):
            table = f"results/urls/few-0000{part}.parquet"
            words = ["--metadata", "lists/few.parquet", "--chunk-index", str(part)]
            assert not cli.main(["prepare", *words, "--output", table,
                                 "--config", prepare.to_json()])  # fmt: skip
            assert not cli.main(["download", "--urls", table, "--output",
                                 f"results/images/few-0000{part}", "--processes", "1",
                                 "--config", download.to_json()])  # fmt: skip
        stages = {
            "prepare": {"section": prepare.model_dump(mode="json"), "code": "a" * 16},
            "download": {"section": download.model_dump(mode="json"), "code": "b" * 16},
        }
        words = ["--stages", json.dumps(stages), "--inputs", "lists/few.parquet"]
        assert not cli.main(["audit", "seal", "results", *words])


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Small(tmp_path, tmp_path / "site")
    with serving(run.site) as url:
        run.make(url)
        yield run


def test_lists_and_images_are_made_again_from_the_web(small, monkeypatch, tmp_path):
    status, said = audit("replay", "results", "--every")
    assert status == 0, said
    assert said.splitlines() == [
        "urls/few-00000.*: equal: 2 files",
        "urls/few-00001.*: equal: 2 files",
        "images/few-00000: equal: 4 files",
        "images/few-00001: equal: 3 files",
    ]
    # From elsewhere the list is found beside the results; moved away, it is asked for.
    monkeypatch.chdir("/")
    assert audit("replay", str(small.results), "urls/few-00000.json")[0] == 0
    away = (small.folder / "lists" / "few.parquet").rename(tmp_path / "renamed.parquet")
    status, said = audit("replay", str(small.results), "--all", "--stage", "prepare")
    assert status == 2 and "give it by --lists" in said
    words = ("replay", str(small.results), "--all", "--stage", "prepare", "--lists")
    assert audit(*words, str(away))[0] == 0


def test_a_list_of_another_hash_is_refused(small, capsys):
    other = small.folder / "few.parquet"
    shutil.copy(small.folder / "lists" / "few.parquet", other)
    with other.open("ab") as file:
        file.write(b"more")
    assert cli.main(["audit", "replay", "results", "--all", "--lists", str(other)]) == 2
    refused(capsys, "few.parquet: no list of this run")


def test_what_the_web_has_lost_is_unknown_and_what_it_changed_is_different(small):
    (small.site / "1.jpg").unlink()
    status, said = audit("replay", "results", "images/few-00000/manifest.json")
    assert status == 2
    assert "images/few-00000: unknown: the source lacks 1 of 4 images now" in said
    assert "3 are equal" in said
    # Both machines are named.
    assert "sealed on: " in said and "this machine: " in said
    (small.site / "1.jpg").write_bytes(jpeg(99))
    status, said = audit("replay", "results", "images/few-00000/manifest.json")
    assert status == 1 and "different: 1 of 4 images are other bytes now" in said


def test_two_runs_that_differ_in_one_image_are_told_apart(small):
    old = (small.folder / "results").rename(small.folder / "old")
    shutil.rmtree(small.folder / "lists")
    (small.site / "3.jpg").write_bytes(jpeg(99))
    small.make(small.url)
    status, said = audit("diff", str(old), "results")
    lines = said.splitlines()
    assert status == 1
    assert lines[3:5] == [
        "the first files that differ, of stage download:", "  images/few-00000/00001.tar",
    ]  # fmt: skip
    (cause,) = (line for line in lines if line.startswith("cause: "))
    assert cause.startswith("cause: image few-00000/000000003: sha256 ")
    assert cause.endswith(f"({small.url}/3.jpg)")
    # The other chunk is the same in both.
    assert "few-00001" not in said


def test_what_is_asked_for_is_said(small, capsys):
    assert cli.main(["audit", "replay", "results"]) == 2
    refused(capsys, "expected paths below RESULTS, or --all")
    assert cli.main(["audit", "replay", "results", "urls/none.json"]) == 2
    refused(capsys, "no file of this run's lock")


@pytest.mark.parametrize(
    ("path", "making"),
    [
        ("urls/a-00000.parquet", Making("urls", "a-00000")),
        ("images/a-00000/00001.tar", Making("images", "a-00000")),
        ("labels/summary.json", Making("summary of labels")),
        ("train/metrics.jsonl", Making("train")),
        ("train/accepted.jsonl", None),
        ("train/live.jsonl", None),
        ("text/captions/a-00000.h5", Making("text captions", "a-00000")),
        ("evaluate/features/frozen-few.h5", Making("features of frozen", "few")),
        ("evaluate/trained.json", Making("scores", "trained")),
        ("evaluate/summary.svg", Making("summary of scores")),
        ("export/timm/README.md", Making("export", "timm")),
        ("report/train.html", None),
    ],
)
def test_files_of_one_command_are_made_together(path, making):
    assert making_of(path) == making


def test_times_are_not_compared(tmp_path):
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    old.write_text(line_of({"step": 1, "loss": 2.0, "images_per_s": 3.0}))
    new.write_text(line_of({"step": 1, "loss": 2.0, "images_per_s": 9.0}))
    assert nearness.compared(old, new) == ("equal", "1 lines without their times")
    new.write_text(line_of({"step": 1, "loss": 2.5, "images_per_s": 3.0}))
    assert nearness.compared(old, new) == ("different", "1 loss: 2 recorded, 2.5 now")


def test_rounding_is_close_and_anything_else_is_different(tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    write_record(old, {"score": 0.5, "name": "a", "sha256": "0" * 64})
    write_record(new, {"score": 0.50001, "name": "a", "sha256": "1" * 64})
    assert nearness.compared(old, new)[0] == "close"
    write_record(new, {"score": 0.5, "name": "b", "sha256": "0" * 64})
    assert nearness.compared(old, new) == ("different", 'name: "a" recorded, "b" now')
    tables = [tmp_path / "old.csv", tmp_path / "new.csv"]
    for path, value in zip(tables, (0.5, 0.6), strict=True):
        write_csv(path, ["model", "value"], [["trained", value]])
    assert nearness.compared(*tables)[0] == "different"


def test_arrays_are_compared_by_their_largest_number(tmp_path):
    from safetensors.numpy import save_file

    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    save_file({"a": np.ones(4, np.float32)}, old)
    save_file({"a": np.full(4, 1.0001, np.float32)}, new)
    assert nearness.compared(old, new)[0] == "close"
    save_file({"a": np.full(4, 1.1, np.float32)}, new)
    assert nearness.compared(old, new)[0] == "different"
    save_file({"b": np.ones(4, np.float32)}, new)
    assert nearness.compared(old, new) == ("different", "a: only in the recorded file")

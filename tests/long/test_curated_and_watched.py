"""A whole run with the stage curate and live scores on: to the seal, and what is done with it."""

from __future__ import annotations

import json

import pytest

from helpers.checkout import ROWS, Checkout, serving
from helpers.curated_runs import check
from mlcd import cli

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

CURATE = {"enabled": True, "clusters": 3, "duplicate_similarity": 0.8, "where": ["caption != ''"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    base = tmp_path_factory.mktemp("run")
    checkout = Checkout(base / "checkout")
    with serving(base / "site") as url:  # also for the replay of the downloads
        checkout.write_images(url, base / "site")
        checkout.configure(curate=CURATE, evaluate={"live_every": 2, "live_images": 40})
        done = checkout.snakemake("--cores", "2", timeout=1500)
        assert done.returncode == 0, done.stdout[-6000:]
        yield checkout


@pytest.fixture
def results(run, monkeypatch):
    monkeypatch.chdir(run.folder)
    return run.folder / "results"


def test_images_are_left_out_and_the_others_labeled(results):
    check(results, images=4 * ROWS)


def test_scores_came_while_it_trained_and_stand_on_its_page(results):
    lines = (results / "train" / "live.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(set(steps)) and steps and all(step % 2 == 0 for step in steps)
    assert "k-NN on few" in (results / "report" / "train.html").read_text()


def test_the_first_page_and_the_status_know_the_stage(results, capsys):
    assert "<text" in (page := (results / "report" / "overview.html").read_text())
    assert ">curate</text>" in page
    assert cli.main(["status", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["state"] == "complete" and "curate" in {one["name"] for one in told["stages"]}


def test_the_seal_holds_and_every_file_is_made_again_equal(results, capsys):
    assert cli.main(["audit", "verify", "results", "--bytes", "--numbers"]) == 0
    capsys.readouterr()
    assert cli.main(["audit", "replay", "results", "--all"]) == 0
    said = capsys.readouterr().out
    assert "curate" in said and "train" in said


def test_it_can_be_published(results, tmp_path):
    words = ["publish", "results", "--output", str(tmp_path / "out"), "--license", "CC0-1.0"]
    assert cli.main(words) == 0
    kept = json.loads((results / "curate" / "summary.json").read_text())["kept"]
    assert json.loads((tmp_path / "out" / "publish.json").read_text())["images"] == kept


def test_without_live_scores_it_is_the_same_run(run):
    """What was asked for beside the training makes nothing stale but the report's own copy."""
    run.configure(curate=CURATE)
    stale = {rule for rule in run.stale() if not rule.startswith("report")}
    run.configure(curate=CURATE, evaluate={"live_every": 2, "live_images": 40})
    assert stale <= {"audit"}

"""The study of scenes: what is run, what a kill leaves, and its table."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.benchmark_scripts import scenes_rows, scenes_study, scenes_table
from helpers.benchmark_scripts import study as study_of
from helpers.paths import ROOT
from mlcd.config import load
from mlcd.utils.errors import UserError
from mlcd.utils.records import write_record

SETTING = "0123456789ab"


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The study in an empty folder, of two seeds."""
    monkeypatch.chdir(tmp_path)
    config = load(scenes_study.CONFIG)
    return scenes_study.Study(config, Path("results"), 0, (0, 1), tmp_path / "scenes.csv")


def score(study, job) -> None:
    """Put the file with a job's scores in its place."""
    value = 0.1 * job.objects + 0.01 * job.seed
    value += 0.001 * (job.cell.l * job.objects if job.cell else 0)
    scores = dict.fromkeys(scenes_rows.METRICS, value)
    found = {"scores": scores, "chance": dict.fromkeys(scores, 0.05)}
    path = Path(job.output(study.results(job.objects)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, {"model": "trained", "seed": job.seed, "datasets": {"scenes": found}})


def test_each_cell_is_run_once_and_the_hypothesis_first(study):
    found = scenes_study.batches(study)
    jobs = [(job.objects, job.name, job.seed) for batch in found for job in batch]
    # 12 cells (of 18: single has one l, and mlc with l = 1 is single) and random weights for each
    # number of objects and seed, four of other K, and the frozen encoder once.
    assert len(jobs) == len(set(jobs)) == 2 * (3 * 13 + 4) + 3
    assert [batch[0].objects for batch in found[:3]] == [1, 2, 4]
    for batch in found[:3]:
        assert [(job.name, job.seed) for job in batch] == [
            (name, seed) for seed in study.seeds for name in
            ("mlcd-l8-r0.1-k500", "mlcd-l1-r0.1-k500", "mlc-l8-r0.1-k500")
        ]  # fmt: skip
    for batch in found[3:6]:
        assert {job.name for job in batch} <= {"random", "frozen"}
    by_k, others = found[6:11], found[11:]
    assert {job.objects for batch in by_k for job in batch} == {1}
    assert [batch[0].name for batch in by_k] == [
        f"mlcd-l1-r{r}-k{k}" for k, r in ((500, 1), (125, 0.1), (125, 1), (2000, 0.1), (2000, 1))
    ]
    # A batch is a cell with all seeds.
    assert [{job.name for job in batch} for batch in others[:15:3]] == [
        {"single-l1-r0.1-k500"}, {"mlcd-l8-r1-k500"}, {"mlc-l8-r1-k500"}, {"mlcd-l4-r0.1-k500"},
        {"mlc-l4-r0.1-k500"},
    ]  # fmt: skip
    for batch in found[6:]:
        assert len({job.name for job in batch}) == 1
        assert [job.seed for job in batch] == list(study.seeds)
    assert all(len({job.objects for job in batch}) == 1 for batch in found)


def test_a_killed_study_goes_on_from_its_table(study, monkeypatch):
    study = study._replace(seeds=(0,))
    jobs = scenes_study.batches(study)
    made = []

    def dies_at(limit):
        def run_batch(study, config, batch, setting, cores):
            values = yaml.safe_load(config.read_text())
            assert values["results"] == study.results(batch[0].objects)
            for job in batch:
                if len(made) == limit:
                    raise KeyboardInterrupt
                made.append((job.objects, job.name, job.seed))
                score(study, job)
                scenes_study.collect(study, [job], setting)

        return run_batch

    monkeypatch.setattr(scenes_study.studies, "compose", lambda *arguments: None)
    options = type("", (), {"limit": None, "until": None, "grounds": None, "cores": 1})
    for limit in (5, 20):
        monkeypatch.setattr(scenes_study, "run_batch", dies_at(limit))
        with pytest.raises(KeyboardInterrupt):
            scenes_study.run(study, options, SETTING, jobs)
        assert len(scenes_rows.read_rows(study.table, SETTING)) == limit
    monkeypatch.setattr(scenes_study, "run_batch", dies_at(None))
    options.limit = 3
    scenes_study.run(study, options, SETTING, jobs)
    assert len(made) == 23
    options.limit = None
    scenes_study.run(study, options, SETTING, jobs)
    expected = [(job.objects, job.name, job.seed) for batch in jobs for job in batch]
    assert made == expected
    assert [row[:3] for row in scenes_rows.read_rows(study.table)] == expected
    assert scenes_study.missing(jobs, scenes_rows.read_rows(study.table)) == []


def test_a_batch_keeps_what_was_finished_when_a_cell_fails(study, monkeypatch):
    """By Snakemake itself, in whose place of the workflow stands a rule that copies scores."""
    (failing, *others) = batch = scenes_study.batches(study)[0][:3]
    score(study, failing)
    Path(failing.output(study.results(1))).rename("scores.json")
    Path("Snakefile").write_text(
        f"""
rule:
    output: "results/objects-1/ablate/{{cell}}/seed-{{seed}}/evaluate/trained.json"
    shell: "test {{wildcards.cell}} != {failing.name} && cp scores.json {{output}}"
"""
    )
    shutil.copytree(ROOT / "profiles" / "local", "profiles/local")
    Path("batch.yaml").write_text("results: results/objects-1")
    monkeypatch.setattr(scenes_study, "_LOOK", 0.2)
    with pytest.raises(UserError, match="mlcd run ended with status 1"):
        scenes_study.run_batch(study, Path("batch.yaml"), batch, SETTING, 1)
    rows = scenes_rows.read_rows(study.table, SETTING)
    assert {row.name for row in rows} == {job.name for job in others}
    assert rows[0].scores == dict.fromkeys(scenes_rows.METRICS, 0.108)


def test_what_lay_there_before_is_not_taken_while_the_workflow_runs(study):
    job = scenes_study.batches(study)[0][0]
    score(study, job)
    assert scenes_study.collect(study, [job], SETTING, math.inf) == 0
    assert scenes_study.collect(study, [job], SETTING) == 1
    assert scenes_study.collect(study, [job], SETTING) == 0


def test_tables_of_other_settings_or_damaged_are_refused(study):
    job = scenes_study.batches(study)[0][0]
    score(study, job)
    scenes_study.collect(study, [job], SETTING)
    with pytest.raises(UserError, match=f"holds rows of setting {SETTING}, and this one is x"):
        scenes_rows.read_rows(study.table, "x")
    whole = study.table.read_text()
    line = whole.splitlines()[1]
    for text, told in (
        (whole + line + "\n", "stands twice"),
        (whole + "4,mlcd-l8-r0.1-k500,0,0.1\n", "line 3 is not whole"),
        ("a,b\n", "expected the columns objects,name,seed"),
    ):
        study.table.write_text(text)
        with pytest.raises(UserError, match=told):
            scenes_rows.read_rows(study.table)


def test_gains_are_paired_and_their_growth_is_judged(study):
    for batch in scenes_study.batches(study):
        for job in batch:
            score(study, job)
        scenes_study.collect(study, batch, SETTING)
    rows = scenes_rows.read_rows(study.table)
    own = study.config.own_cell
    (several, loss, *_) = [gain for gain, _ in scenes_table.gains(own)]
    values = scenes_table.values_of(rows, "tags_map")
    # Seeds move both cells alike: the interval of the difference has no width.
    assert scenes_table.gain_at(values, 2, several) == (pytest.approx(0.014), pytest.approx(0), 2)
    assert scenes_table.growth(values, several).mean == pytest.approx(0.021)
    assert scenes_table.growth(values, loss).mean == pytest.approx(0)
    text = scenes_table.tables(rows, own, len(rows))
    assert f"**{len(rows)} of {len(rows)} rows are run**" in text
    assert "| **l = 8 − l = 1 (mlcd, r = 0.1)** | +0.0070 ± 0.0000" in text
    assert "| 125 |" in text and "| 2000 |" in text
    assert scenes_table.draw(rows, own) == scenes_table.draw(rows, own)
    assert scenes_table.tables([], own, 9) == (
        "**0 of 9 rows are run** (a row is a cell or baseline with one seed)."
    )
    one = [row for row in rows if row.seed == 0 and row.objects == 1]
    assert "(one seed)" in scenes_table.tables(one, own, len(rows))


def test_the_page_has_the_tables_of_its_rows():
    page = scenes_rows.PAGE.read_text()
    config = load(scenes_study.CONFIG)
    setting = scenes_study.setting_of(scenes_study.CONFIG, 0)
    rows = scenes_rows.read_rows(scenes_rows.PAGE.with_suffix(".csv"), setting)
    study = scenes_study.Study(config, Path(), 0, scenes_study.SEEDS, Path())
    total = sum(map(len, scenes_study.batches(study)))
    text = scenes_table.tables(rows, config.own_cell, total)
    assert study_of.with_tables(scenes_rows.PAGE, "scenes_table.py", text) == page
    assert re.search(r"!\[.*\]\(scenes\.svg\)", page) or not rows


def test_the_grid_of_the_config_is_that_of_the_study():
    config = load(scenes_study.CONFIG)
    study = scenes_study.Study(config, Path(), 0, scenes_study.SEEDS, Path())
    jobs = [job for batch in scenes_study.batches(study) for job in batch if job.cell]
    ours = {(job.cell, job.seed) for job in jobs if job.cell.k == config.cluster.k}
    assert ours == set(config.ablate.runs(config.own_cell))


def test_settings_are_chosen_apart_from_the_study(study, monkeypatch, capsys):
    seen = []

    def run_batch(study, config, batch, setting, cores):
        seen.append((yaml.safe_load(config.read_text())["train"], setting))
        for job in batch:
            score(study, job)
        scenes_study.collect(study, batch, setting)

    monkeypatch.setattr(scenes_study, "run_batch", run_batch)
    monkeypatch.setattr(scenes_study.studies, "compose", lambda *arguments: None)
    options = type(
        "", (), {"limit": None, "until": None, "grounds": None, "cores": 1, "folder": Path("other")}
    )
    scenes_study.choose(options)
    assert [train for train, _ in seen] == [
        choice for choice in scenes_study.CHOICES for _ in range(2)
    ]
    assert len({setting for _, setting in seen}) == len(scenes_study.CHOICES)
    assert scenes_study.CHOOSE_SEED not in scenes_study.SEEDS
    assert not study.table.exists()
    # Mean of 1 and 4 objects, seed 100, l = 8 and 1: 1.25 + 0.001 (8 + 1 + 32 + 4) / 4.
    assert capsys.readouterr().out.count("| 1.2612 | 1.2612 |") == len(scenes_study.CHOICES)


def test_the_plan_is_printed():
    words = [sys.executable, ROOT / "benchmarks" / "scenes_study.py", "--plan"]
    found = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    assert re.search(r"^\d+ rows are missing$", found.stdout, re.MULTILINE)

"""The study of regions: arms, rows, tables, the verdict, and what a kill leaves."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from helpers.benchmark_scripts import regions_rows, regions_study, regions_table
from helpers.benchmark_scripts import study as study_of
from mlcd.config import load
from mlcd.utils.errors import UserError
from mlcd.utils.records import write_record

SETTING = "0123456789ab"


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load(regions_study.CONFIG)
    return regions_study.Study(config, Path("results"), 0, (0, 1, 2, 3, 4), tmp_path / "r.csv")


def score(study, job, layer=0.6, image=0.0) -> None:
    """Put the file with a job's scores in its place; the layer is ahead of roi, 0.5, by 0.1."""
    scores = dict.fromkeys(regions_rows.METRICS, 0.5 + 0.01 * job.seed)
    for how in ("knn", "probe"):
        if job.arm == "plain":
            del scores[f"region_{how}_layer"]
        else:
            scores[f"region_{how}_layer"] = layer + 0.01 * job.seed
    if job.arm == "mosaic":
        scores["tags_map"] += image
    found = {"scores": scores, "chance": dict.fromkeys(scores, 0.1)}
    path = study.output(job)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, {"model": "trained", "seed": job.seed, "datasets": {"scenes": found}})


def scored(study, **keys):
    for job in study.jobs():
        score(study, job, **keys)
    regions_study.collect(study, study.jobs(), SETTING)
    return regions_rows.read_rows(study.table, SETTING)


def test_arms_differ_in_regions_alone(study, monkeypatch):
    (Path("results") / "data").mkdir(parents=True)
    monkeypatch.setattr(regions_study.studies, "compose", lambda *arguments: None)
    found = []
    for batch in regions_study.batches(study.jobs(), 2)[:2]:
        assert len({job.arm for job in batch}) == 1 and [job.seed for job in batch] == [0, 1]
        found.append(yaml.safe_load(regions_study.prepare(study, batch, None).read_text()))
    plain, mosaic = found
    assert plain.pop("results") == "results/plain" and mosaic.pop("results") == "results/mosaic"
    assert plain.pop("train") == {"regions": None}
    assert mosaic.pop("train") == {"regions": "mosaic"}
    assert plain == mosaic
    section = study.config.train.changed(regions="mosaic")
    assert section.mosaic.rows == 8, "the config holds in both arms"


def test_batches_hold_every_job_once_however_wide(study):
    for size in (1, 2, 3, 8):
        found = [job for batch in regions_study.batches(study.jobs(), size) for job in batch]
        assert sorted(found) == sorted(study.jobs()) and len(found) == 10


def test_a_killed_study_goes_on_from_its_table(study, monkeypatch):
    made = []
    monkeypatch.setattr(regions_study, "prepare", lambda *_: Path())

    def run_batch(study, config, batch, setting, cores):
        for job in batch:
            if len(made) == 3:
                raise KeyboardInterrupt
            made.append(job)
            score(study, job)
            regions_study.collect(study, [job], setting)

    monkeypatch.setattr(regions_study, "run_batch", run_batch)
    options = SimpleNamespace(limit=None, until=None, grounds=None, cores=2)
    with pytest.raises(KeyboardInterrupt):
        regions_study.run(study, options, SETTING)
    before = list(made)
    made.clear()
    options.limit = 2
    regions_study.run(study, options, SETTING)
    assert len(made) == 2 and not set(made) & set(before)
    rows = regions_rows.read_rows(study.table, SETTING)
    assert len(rows) == 5
    with pytest.raises(UserError, match="holds rows of setting 0123456789ab, and this one is x"):
        regions_rows.read_rows(study.table, "x")


def test_an_arm_may_lack_the_layer_and_nothing_else(study):
    rows = scored(study)
    assert all(("region_knn_layer" in row.scores) == (row.arm == "mosaic") for row in rows)
    job = study.jobs()[0]
    write_record(
        study.output(job),
        {"model": "trained", "seed": 0,
         "datasets": {"scenes": {"scores": {"knn_20": 0.5}, "chance": {"knn_20": 0.1}}}},
    )  # fmt: skip
    with pytest.raises(UserError, match="has no region_knn_crop"):
        regions_study.row_of(study.output(job), job, SETTING)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [({}, "holds"), ({"image": -0.02}, "does not hold"), ({"layer": 0.5}, "does not hold")],
)
def test_the_verdict_is_that_of_the_page(study, keys, expected):
    rows = scored(study, **keys)
    values = regions_table.values_of(rows)
    assert regions_table.verdict(values) == expected
    text = regions_table.tables(rows, 10)
    assert f"**The hypothesis: {expected}.**" in text
    few = [row for row in rows if row.seed < 4]
    assert regions_table.verdict(regions_table.values_of(few)) == "not decided yet"


def test_differences_are_paired_and_shown_with_their_interval(study):
    text = regions_table.tables(scored(study), 10)
    # Seeds move both arms alike: the interval has no width.
    title = "region k-NN: layer (mosaic) − roi (plain)"
    assert f"| **{title}** | +0.1000 ± 0.0000 | above |" in text
    assert "| region k-NN, layer | 0.1000 |  | 0.6200 ± " in text
    assert "Seeds: plain 5, mosaic 5." in text
    assert regions_table.tables([], 10).startswith("**0 of 10 rows are run**")


def test_the_page_has_the_tables_of_its_rows():
    page = regions_rows.PAGE.read_text()
    setting = regions_study.setting_of(regions_study.CONFIG, 0)
    rows = regions_rows.read_rows(regions_rows.PAGE.with_suffix(".csv"), setting)
    text = regions_table.tables(rows, 10)
    assert study_of.with_tables(regions_rows.PAGE, "regions_table.py", text) == page
    assert re.search("Written down, and committed, before any training", page)
    assert regions_study.CHOOSE_SEED not in regions_study.SEEDS

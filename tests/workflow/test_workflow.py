"""The real workflow on a few dozen real images, and which changes make which stages stale."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import pandas as pd
import pytest
from huggingface_hub import ModelCard

from helpers import audit_changes
from helpers.audit_changes import audit, found
from helpers.checkout import CONFIG, ROOT, ROWS
from helpers.curated_runs import check
from mlcd import cli
from mlcd.utils.files import sha256_file
from mlcd.utils.records import read_record

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(
        not (ROOT / "demo" / "openclipart.tar").exists(), reason="demo/openclipart.tar is missing"
    ),
    pytest.mark.timeout(900),
]

#: What each stage takes along when it is stale, itself included (report parts apart).
AFTER_TRAIN = {"train", "evaluate_features", "evaluate", "evaluate_summary", "export"}

AFTER_LABEL = {"label", "label_summary"} | AFTER_TRAIN

AFTER_CLUSTER = {"cluster"} | AFTER_LABEL


def science(stale: dict[str, int]) -> dict[str, int]:
    """Leave out the report's parts and the seal: they follow whatever they are of."""
    return {rule: jobs for rule, jobs in stale.items() if not rule.startswith(("report", "audit"))}


def test_every_stage_leaves_its_results(finished):
    results = finished.folder / "results"
    chunks = ["first-00000", "first-00001", "second-00000", "second-00001"]
    for chunk in chunks:
        manifest = json.loads((results / "images" / chunk / "manifest.json").read_text())
        assert manifest["counts"]["success"] == ROWS
        with h5py.File(results / "labels" / f"{chunk}.h5") as file:
            assert file["label"].shape == (ROWS, 2)
    summary = pd.read_csv(results / "evaluate" / "summary.csv")
    assert list(summary.columns[:5]) == ["model", "dataset", "metric", "value", "seed"]
    assert {"pixels", "random", "trained", "frozen"} <= set(summary.model)
    assert summary.value.between(0, 1).all()
    assert json.loads((results / "export" / "timm" / "check.json").read_text())
    cost = pd.read_csv(results / "report" / "efficiency.csv")
    assert cost.state.eq("done").all()
    assert cost.rule.value_counts()["embed"] == 4
    assert cost[cost.rule == "train"].run.item() > 1
    steps = [json.loads(line) for line in (results / "train" / "metrics.jsonl").open()]
    assert [step["step"] for step in steps] == list(range(1, 2 * (4 * ROWS // 16) + 1))


def test_a_whole_run_is_told_as_complete(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished.folder)
    capsys.readouterr()
    assert cli.main(["status", "--json"]) == 0
    look = json.loads(capsys.readouterr().out)
    assert (look["state"], look["failures"]) == ("complete", [])
    stages = {stage["name"]: stage for stage in look["stages"]}
    assert (stages["embed"]["finished"], stages["embed"]["jobs"]) == (4, 4)
    assert {stage["state"] for stage in stages.values()} == {"done"}


def test_a_second_run_does_nothing(finished):
    assert finished.stale() == {}


def test_threads_ranks_and_profile_make_nothing_stale(finished):
    assert finished.stale("--cores", "1") == {}
    assert (
        finished.stale("--set-threads", "embed=1", "--set-resources", "train:ranks_per_node=1")
        == {}
    )
    assert finished.stale("--profile", "profiles/test") == {}


def test_a_fresh_checkout_makes_nothing_stale(changed):
    for part in ["src", "workflow", "rules", "profiles", "lists", "few.tar", "config.yaml"]:
        path = changed.folder / part
        for item in [path, *path.rglob("*")]:
            item.touch()
    assert changed.stale() == {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"label": {"top": 3}}, AFTER_LABEL),
        ({"cluster": {"k": 9}}, AFTER_CLUSTER),
        ({"train": {"lr": 0.003}}, AFTER_TRAIN),
        # The model card of the export shows the results.
        ({"evaluate": {"probe_max_iterations": 50}}, {"evaluate", "evaluate_summary", "export"}),
        ({"export": {"tolerance": 1e-4}}, {"export"}),
        ({"report": {"montage_images": 4}}, set()),
        ({"download": {"min_success": 0.9}}, set()),
        ({"embed": {"max_failed": 0.5}}, set()),
        # What refuses labels decides none, nor does what only mode two_level uses.
        ({"label": {"min_agreement": 0.5, "groups": 3, "probes": 2}}, set()),
        ({"label": {"mode": "two_level"}}, AFTER_LABEL),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_changed_key_makes_its_stage_and_later_ones_stale(changed, change, expected):
    changed.configure(**change)
    stale = changed.stale()
    assert set(science(stale)) == expected
    assert any(rule.startswith("report") for rule in stale)


@pytest.mark.long
def test_moved_initial_centers_make_nothing_stale(changed):
    here, there = changed.folder / "one.h5", changed.folder / "my centers.h5"
    shutil.copy(changed.folder / "results" / "clusters" / "centroids.h5", here)
    changed.configure(cluster={"initial": here.name})
    assert set(science(changed.stale())) == AFTER_CLUSTER
    done = changed.snakemake("--cores", "1", "--until", "cluster")
    assert done.returncode == 0, done.stdout[-6000:]
    here.rename(there)
    changed.configure(cluster={"initial": there.name})
    assert changed.stale("--until", "cluster") == {}
    # Given on the command line, the place is found too.
    done = changed.snakemake("--cores", "1", "--until", "cluster", "--forcerun", "cluster")
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.long
def test_first_weights_count_by_their_content(changed):
    results, here, there = changed.folder / "results", changed.folder / "one", changed.folder / "b"
    here.mkdir()
    for name in ("encoder.safetensors", "encoder.json"):
        shutil.copy(results / "train" / name, here)
    began = json.loads((here / "encoder.json").read_text())["sha256"]
    changed.configure(train={"initial": "results/train"})
    done = changed.snakemake("--dry-run")
    assert done.returncode == 1 and "is what this run writes; set another results" in done.stdout
    changed.configure(train={"initial": "one"})
    assert set(science(changed.stale())) == AFTER_TRAIN
    done = changed.snakemake("--cores", "2", "--until", "train")
    assert done.returncode == 0, done.stdout[-6000:]
    about = json.loads((results / "train" / "encoder.json").read_text())
    assert about["initial"]["sha256"] == began != about["sha256"]
    # Another place and another time: the same weights.
    shutil.copytree(here, there)
    changed.configure(train={"initial": "b"})
    assert changed.stale("--until", "train") == {}
    for name in ("encoder.safetensors", "encoder.json"):
        shutil.copy(results / "train" / name, there)
    assert set(changed.stale("--until", "train")) == {"train"}


def test_what_the_encoder_cannot_be_stops_a_run_before_any_work(changed):
    shutil.rmtree(changed.folder / "results")
    changed.configure(train={"freeze_layers": 99})
    done = changed.snakemake("--cores", "1")
    assert done.returncode == 1
    assert "train.freeze_layers: resnet10t has" in done.stdout
    assert not (changed.folder / "results" / "urls").exists()


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_changed_module_makes_its_stage_stale(changed):
    path = changed.folder / "src/mlcd/stages/label/nearest.py"
    edit(path, "min(top + 1, search.K)", "min(top + 2, search.K)")
    assert set(science(changed.stale())) == AFTER_LABEL


def test_a_changed_comment_or_message_makes_nothing_stale(changed):
    source = changed.folder / "src/mlcd"
    for name in ("utils/files.py", "stages/embed/__init__.py", "stages/train/__init__.py"):
        path = source / name
        path.write_text(path.read_text() + "\n# A remark.\n")
    edit(source / "stages/train/__init__.py", '"""Stage `train`', '"""The stage `train`')
    edit(source / "utils/files.py", "not readable as JSON", "no JSON")
    assert changed.stale() == {}


def test_a_removed_embedding_is_made_again_with_what_hangs_on_it(changed):
    (changed.folder / "results" / "embeddings" / "second-00001.h5").unlink()
    stale = science(changed.stale())
    assert stale["embed"] == 1
    assert set(stale) == {"embed"} | AFTER_CLUSTER


def test_one_more_list_adds_its_chunks_alone(changed):
    changed.configure(
        metadata=["lists/first.parquet", "lists/second.parquet", "lists/third.parquet"]
    )
    stale = science(changed.stale())
    assert {rule: stale[rule] for rule in ("prepare", "download", "embed")} == {
        "prepare": 1,
        "download": 1,
        "embed": 1,
    }
    assert set(stale) == {"prepare", "download", "embed"} | AFTER_CLUSTER


def test_one_more_data_set_adds_its_features_alone(changed):
    images = changed.folder / "images"
    for split in ("train", "test"):
        (images / split / "a").mkdir(parents=True)
    datasets = [*CONFIG["evaluate"]["datasets"], {"name": "more", "path": "images"}]
    changed.configure(evaluate={"datasets": [*datasets, {"name": "digits"}]})
    stale = science(changed.stale())
    assert stale == {"evaluate_features": 2 * 4, "evaluate": 4, "evaluate_summary": 1, "export": 1}


#: Small enough to be sure that clusters hold several images, and that some are alike.
CURATE = {"enabled": True, "clusters": 3, "duplicate_similarity": 0.8, "where": ["caption != ''"]}


def test_a_curated_run_leaves_out_images_and_tells_why(changed):
    changed.configure(curate={**CURATE, "enabled": False})
    assert changed.stale() == {}
    # Other centers, labels and weights: none of the run's own are touched before.
    changed.configure(metadata=["lists/first.parquet"], cluster={"k": 4}, curate=CURATE)
    stale = science(changed.stale())
    jobs = {"curate_cluster": 1, "curate_facts": 2, "curate": 1, "curate_kept": 2}
    assert {rule: stale[rule] for rule in jobs} == jobs
    assert set(stale) == set(jobs) | AFTER_CLUSTER
    results = changed.folder / "results"
    done = changed.snakemake("--cores", "2", "results/labels/summary.json",
                             "results/report/curate.html")  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    check(results, images=2 * ROWS)


def test_tasks_with_parts_of_their_own_add_these_alone(changed):
    [few] = CONFIG["evaluate"]["datasets"]
    few = {**few, "tasks": ["knn", "linear_probe", "finetune"]}
    dense = {"name": "digits", "tasks": ["segmentation", "regions"]}
    changed.configure(evaluate={"datasets": [few, dense]})
    stale = science(changed.stale())
    after = {"evaluate": 4, "evaluate_summary": 1, "export": 1}
    # Fine-tuning of two models, patches of three; no features of a set whose tasks see none.
    assert stale == {"evaluate_finetune": 2, "evaluate_dense": 3, **after}


@pytest.mark.long
def test_the_same_run_gives_the_same_bytes(finished, changed):
    """Everything from the clusters on is made again, with fewer cores: equal files."""
    shutil.rmtree(changed.folder / "results" / "clusters")
    shutil.rmtree(changed.folder / "results" / "labels")
    shutil.rmtree(changed.folder / "results" / "train")
    done = changed.snakemake("--cores", "1", "--until", "train")
    assert done.returncode == 0, done.stdout[-6000:]
    for name in [
        "clusters/centroids.h5",
        "labels/first-00000.h5",
        "train/encoder.safetensors",
    ]:
        assert sha256_file(changed.folder / "results" / name) == sha256_file(
            finished.folder / "results" / name
        ), name


@pytest.mark.long
def test_an_edited_loss_trains_anew(finished, changed):
    """No state of the old code is met: the weights are others."""
    path = changed.folder / "src/mlcd/losses/objective.py"
    edit(path, "return first + second", "return first + 2 * second")
    done = changed.snakemake("--cores", "2", "--until", "train")
    assert done.returncode == 0, done.stdout[-6000:]
    name = "results/train/encoder.safetensors"
    assert sha256_file(changed.folder / name) != sha256_file(finished.folder / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": {"tops": 3}}, "label.tops: unknown key; did you mean label.top?"),
        ({"cluster": {"k": "many"}}, "cluster.k: expected a valid integer"),
        ({"metadata": ["lists/none.parquet"]}, "lists/none.parquet"),
    ],
)
def test_a_wrong_config_stops_before_any_work(changed, change, message):
    changed.configure(**change)
    done = changed.snakemake("--dry-run")
    assert done.returncode != 0
    assert message in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.long
def test_an_ablation_shares_what_it_can_and_adds_only_what_is_new(changed):
    def ablation(*grids: dict) -> dict[str, int]:
        changed.configure(ablate={"grids": list(grids)})
        return changed.stale("--", "ablate")

    grid = {"loss": ["mlcd", "single"], "seeds": [0]}
    runs = {"ablate_train": 2, "ablate_evaluate": 2, "ablate_baseline": 2}
    after = {"ablate_table": 1, "report_ablate": 1, "ablate": 1}
    assert ablation(grid) == runs | after
    done = changed.snakemake("--cores", "2", "--", "ablate")
    assert done.returncode == 0, done.stdout[-6000:]
    results = changed.folder / "results"
    table = pd.read_csv(results / "ablate" / "table.csv")
    assert set(table.name) == {"mlcd-l2-r0.5-k8", "single-l1-r0.5-k8", "pixels", "random"}
    for name, loss in (("mlcd-l2-r0.5-k8", "mlcd"), ("single-l1-r0.5-k8", "single")):
        about = json.loads(
            (results / "ablate" / name / "seed-0" / "train" / "encoder.json").read_text()
        )
        assert about["section"]["loss"] == loss
    assert (results / "ablate" / "plot.svg").exists()
    assert not list((results / "ablate").rglob("*.h5"))

    assert changed.stale("--", "ablate") == {}
    assert changed.stale("--set-resources", "ablate_train:ranks_per_node=2", "--", "ablate") == {}
    more = {"ablate_train": 2, "ablate_evaluate": 2}
    assert ablation(grid | {"seeds": [0, 1]}) == more | {"ablate_baseline": 2} | after
    # One label of the run's two; three need labels of their own, another K also its clusters.
    few = {"seeds": [0]}
    assert ablation(grid, few | {"l": [1]}) == {"ablate_train": 1, "ablate_evaluate": 1} | after
    wide = ablation(grid, few | {"l": [3]})
    assert wide == {"ablate_label": 4, "ablate_train": 1, "ablate_evaluate": 1} | after
    other = ablation(grid, few | {"k": [5]})
    assert other == {"ablate_cluster": 1, "ablate_label": 4} | wide
    # A normal run is as it was: without grids there is no ablation in it.
    changed.configure()
    assert changed.stale() == {}


def test_a_sealed_run_holds_on_every_level_wherever_it_lies(finished, changed):
    root = read_record(finished.folder / "results/audit/lock.json", "audit")["root"]
    for folder, options in ((finished.folder, ()), (changed.folder, ("--bytes", "--numbers"))):
        status, said = audit("verify", f"{folder}/results", *options)
        assert status == 0, said
        assert f"identity: {root}" in said
    assert audit("verify", f"{changed.folder}/results", "--identity", root)[0] == 0
    status, said = audit("verify", f"{changed.folder}/results", "--identity", "0" * 64)
    assert status == 1 and f"is of the run {root}" in said
    status, said = audit("verify", f"{changed.folder}/results", "--bytes", "--sample", "0.25")
    assert status == 0 and "would be missed with probability 0.7" in said


def test_a_run_ends_with_its_identity_and_its_cards_and_its_page_name_it(finished):
    results = finished.folder / "results"
    root = read_record(results / "audit/lock.json", "audit")["root"]
    *_, last = (line for line in finished.said.splitlines() if "identity" in line)
    assert last == f"identity of this run: {root} (mlcd audit verify results)"
    card = ModelCard.load(results / "export/timm/README.md").data
    assert card["mlcd_run"] == root
    scores = read_record(results / "evaluate/trained.json", "evaluate")["datasets"]
    assert {(r.dataset_name, r.metric_type): r.metric_value for r in card.eval_results} == {
        (name, metric): value for name, one in scores.items()
        for metric, value in one["scores"].items()
    }  # fmt: skip
    assert root in (results / "audit/chain.html").read_text()


def test_changes_are_found_by_the_level_that_promises_it(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished.folder)
    copy = audit_changes.Copy(finished.folder / "results", tmp_path)
    some = list(audit_changes.changes(copy.folder, 1))[::3]
    missed = [change.name for change in some if not found(copy, change)]
    assert missed == []
    assert audit("verify", str(copy.folder), "--bytes")[0] == 0


def test_files_images_and_clusters_are_explained(finished):
    results = f"{finished.folder}/results"
    status, said = audit("explain", results, "export/timm/model.safetensors")
    assert status == 0
    for word in ("by stage train", "by stage label", "by stage download", "first.parquet"):
        assert word in said, said
    status, said = audit("explain", results, "image:first-00000/000000003")
    assert status == 0 and "clusters, nearest first" in said and "http://127.0.0.1" in said
    assert "seen by training in steps" in said and "scores that rest on it: few knn_3" in said
    status, said = audit("explain", results, "score:trained/few/knn_3")
    assert status == 0 and "on 90 test images" in said and "by stage evaluate" in said
    status, said = audit("explain", results, "cluster:3")
    assert status == 0 and "cluster 3 of 8" in said
    assert audit("explain", results, "cluster:8")[0] == 2

"""The real workflow on a few dozen real pictures, and which changes make which stages stale."""

from __future__ import annotations

import json
import shutil

import h5py
import pandas as pd
import pytest
from checkout import CONFIG, ROOT, ROWS, Checkout, serving

from mlcd.files import sha256_file

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


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A checkout whose workflow has run to the end."""
    base = tmp_path_factory.mktemp("run")
    checkout = Checkout(base / "checkout")
    with serving(base / "site") as url:
        checkout.write_pictures(url, base / "site")
        done = checkout.snakemake("--cores", "2")
    assert done.returncode == 0, done.stdout[-6000:]
    return checkout


@pytest.fixture
def changed(finished, tmp_path):
    """A copy of the finished checkout, times kept, that a test may change."""
    copy = tmp_path / "checkout"
    shutil.copytree(finished.folder, copy, symlinks=True)
    again = object.__new__(Checkout)
    again.folder = copy
    return again


def science(stale: dict[str, int]) -> dict[str, int]:
    """Leave out the report's parts: they follow whatever they draw."""
    return {rule: jobs for rule, jobs in stale.items() if not rule.startswith("report")}


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
        ({"report": {"montage_pictures": 4}}, set()),
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


def test_moved_initial_centres_make_nothing_stale(changed):
    here, there = changed.folder / "one.h5", changed.folder / "my centres.h5"
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


def test_a_changed_module_makes_its_stage_stale(changed):
    path = changed.folder / "src" / "mlcd" / "label.py"
    if not path.exists():
        path = changed.folder / "src" / "mlcd" / "label" / "__init__.py"
    path.write_text(path.read_text() + "\nCHANGED = True\n")
    assert set(science(changed.stale())) == AFTER_LABEL


def test_a_changed_comment_makes_nothing_stale(changed):
    path = changed.folder / "src" / "mlcd" / "sources.py"
    path.write_text(path.read_text() + "\n# A remark.\n")
    for stage in ("embed", "train"):
        package = changed.folder / "src" / "mlcd" / stage / "__init__.py"
        path = package if package.exists() else package.parent.with_suffix(".py")
        path.write_text("# A remark.\n" + path.read_text())
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
    pictures = changed.folder / "pictures"
    for split in ("train", "test"):
        (pictures / split / "a").mkdir(parents=True)
    datasets = [*CONFIG["evaluate"]["datasets"], {"name": "more", "path": "pictures"}]
    changed.configure(evaluate={"datasets": [*datasets, {"name": "digits"}]})
    stale = science(changed.stale())
    assert stale == {"evaluate_features": 2 * 4, "evaluate": 4, "evaluate_summary": 1, "export": 1}


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


def test_an_edited_loss_trains_anew(finished, changed):
    """No state of the old code is met: the weights are others."""
    path = changed.folder / "src" / "mlcd" / "losses" / "terms.py"
    text = path.read_text()
    assert "return first + second" in text
    path.write_text(text.replace("return first + second", "return first + 2 * second"))
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

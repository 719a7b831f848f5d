"""Ablations: the grid, labels shared over l, intervals, tables, and the page of the report."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ablate_runs import MLC, MLCD, ONE, SINGLE, ablation_words, finished, scores
from builders import unit_vectors
from scipy import stats
from train_stores import stores

from mlcd.ablate.intervals import difference, interval
from mlcd.ablate.published import published
from mlcd.cli import main
from mlcd.config import Ablate, Cell, Config, validate
from mlcd.errors import UserError
from mlcd.losses import cluster_loss
from mlcd.neighbours.exact import ExactSearch
from mlcd.train import inputs

ROOT = Path(__file__).parent.parent
OWN = Cell("mlcd", 4, 0.5, 256)

# ---------------------------------------------------------------------------------- the grid


def test_a_grid_of_nothing_is_the_runs_own_cell():
    assert Ablate().runs(OWN) == []
    assert Ablate(grids=[{"seeds": [3, 1]}]).runs(OWN) == [(OWN, 3), (OWN, 1)]
    assert Config(label={"top": 8}).own_cell == Cell("mlcd", 8, 0.5, 256)
    assert Config(train={"loss": "single"}).own_cell.l == 1
    assert Config(train={"positives": 2}).own_cell.l == 2


def test_every_combination_once_and_equal_losses_are_one_cell():
    grid = {"loss": ["mlcd", "mlc", "single"], "l": [1, 8], "r": [0.1, 1.0], "seeds": [0]}
    names = [cell.name for cell, _ in Ablate(grids=[grid]).runs(OWN)]
    each = ["mlcd-l1-r{}-k256", "mlcd-l8-r{}-k256", "single-l1-r{}-k256", "mlc-l8-r{}-k256"]
    assert names == [name.format(r) for r in ("0.1", "1") for name in each]
    more = Ablate(grids=[grid, {"l": [8], "r": [0.1], "seeds": [0, 1]}]).runs(OWN)
    assert len(more) == 8 + 1 and more[-1] == (Cell("mlcd", 8, 0.1, 256), 1)


def test_a_cell_is_found_again_by_its_name():
    for cell in (
        Cell("mlcd", 8, 0.1, 1_000_000),
        Cell("single", 1, 1.0, 2),
        Cell("mlc", 4, 1e-5, 9),
    ):
        assert Cell.parse(cell.name) == cell
    for name in ("mlcd-l8-r0.1", "mlcdx-l8-r0.1-k2", "../mlcd-l8-r0.1-k2", "mlcd-l8-r0.1-k2/x"):
        with pytest.raises(ValueError, match="names no cell"):
            Cell.parse(name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ablate": {"grids": [{"l": [300]}]}}, "l = 300 labels of 256 clusters"),
        ({"ablate": {"grids": [{"r": [0.0]}]}}, r"ablate.grids.0.r: expected shares of more than"),
        ({"ablate": {"grids": [{"seeds": [1, 1]}]}}, r"seeds: a value stands twice in \[1, 1\]"),
        ({"ablate": {"grids": [{"seeds": []}]}}, "seeds"),
        ({"ablate": {"grids": [{"k": [0]}]}}, "k: expected values of at least 1, got 0"),
        ({"ablate": {"grids": [{"top": [1]}]}}, "unknown key"),
        ({"ablate": {"grids": [{}]}, "evaluate": {"datasets": []}}, "give evaluate.datasets"),
        ({"train": {"positives": 5}}, "train.positives: 5 of 4 labels a picture"),
    ],
)
def test_a_wrong_grid_is_refused_by_key(values, message):
    with pytest.raises(UserError, match=message):
        validate(Config, values, "config.yaml")


def test_mlc_with_one_positive_is_single():
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    centre = torch.randn(10, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 10, (6, 3), generator=generator)
    found = []
    for kind, l in (("mlc", 1), ("single", 1), ("single", 3), ("mlcd", 1)):
        rows = embedding.clone().requires_grad_()
        loss = cluster_loss(
            rows, centre, labels[:, :l], torch.arange(0, 10, 2),
            kind=kind, scale=16.0, margin=0.3, margin_type="cosface",
        )  # fmt: skip
        loss.backward()
        found.append((loss.item(), rows.grad))
    for loss, gradient in found[1:3]:
        assert loss == pytest.approx(found[0][0], rel=1e-12)
        assert torch.allclose(gradient, found[0][1], atol=1e-12)
    assert found[3][0] != pytest.approx(found[0][0], rel=1e-3)


# ------------------------------------------------------------------- labels shared over l


def test_the_nearest_l_are_the_first_of_any_larger_number_with_ties():
    centres = unit_vectors(40, 6)
    centres[20:30] = centres[:10]  # equal centres: the lower id wins at any number
    rows = unit_vectors(50, 6, seed=1)
    search = ExactSearch(centres, threads=1)
    eight = search.nearest(rows, 8)
    for l in (1, 2, 4, 7):
        assert np.array_equal(search.nearest(rows, l), eight[:, :l])


def test_training_reads_the_first_labels_alone(tmp_path):
    paths = stores(tmp_path)
    checked = inputs.check(
        paths["labels"], paths["embeddings"], paths["images"], paths["centroids"]
    )
    inputs.build_index(checked, tmp_path / "all")
    inputs.build_index(checked, tmp_path / "two", 2)
    whole, two = inputs.Index(tmp_path / "all"), inputs.Index(tmp_path / "two")
    assert whole.label.shape == (64, 3) and np.array_equal(two.label, whole.label[:, :2])
    assert np.array_equal(two.place, whole.place)
    with pytest.raises(UserError, match=r"train\.positives: 4 of 3 labels"):
        inputs.build_index(checked, tmp_path / "four", 4)


# ---------------------------------------------------------------------------- intervals


def test_intervals_are_students():
    one = {0: 0.50, 1: 0.53, 2: 0.49, 3: 0.55}
    other = {1: 0.50, 2: 0.48, 3: 0.53, 9: 0.1}
    found = interval(list(one.values()))
    low, high = stats.ttest_1samp(list(one.values()), 0).confidence_interval(0.95)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    paired = difference(one, other)
    truth = stats.ttest_rel([0.53, 0.49, 0.55], [0.50, 0.48, 0.53])
    assert paired.n == 3 and paired.mean - paired.half == pytest.approx(
        truth.confidence_interval(0.95).low
    )
    assert paired.verdict == ("above" if truth.pvalue < 0.05 else "open")
    assert interval([0.5]).half is None and interval([0.5]).verdict == "open"
    assert difference({0: 1.0}, {1: 1.0}) is None
    assert interval([-1.0, -1.01]).verdict == "below"


def test_the_papers_figures_go_with_the_right_pairs():
    eight, one = Cell("mlcd", 8, 0.1, 500), Cell("mlcd", 1, 0.1, 500)
    assert published(eight, one) == (75.2, 71.4) and published(one, eight) == (71.4, 75.2)
    assert published(eight, eight._replace(r=1.0)) == (75.2, 63.2)
    assert published(eight._replace(loss="mlc"), eight) == (76.9, 78.1)
    assert published(eight, eight._replace(l=3)) is None
    assert published(eight, eight._replace(k=1000)) is None
    single = one._replace(loss="single")
    assert published(eight._replace(loss="mlc"), single) is None
    assert published(single, eight) == (58.3, 67.5)
    million = Cell("mlcd", 8, 0.1, 1_000_000)
    assert published(million, million._replace(k=100_000)) == (75.2, 66.9)


def test_the_papers_figures_go_with_its_own_setting_alone():
    eight, four = Cell("mlcd", 8, 0.1, 500), Cell("mlcd", 4, 0.1, 500)
    all_negatives = eight._replace(r=1.0)
    for one, other in [
        (all_negatives, all_negatives._replace(l=1)),
        (four, four._replace(r=1.0)),
        (four._replace(r=0.5), four._replace(r=0.5, loss="mlc")),
        (all_negatives, all_negatives._replace(loss="mlc")),
        (four, four._replace(loss="single", l=1)),
        (all_negatives, Cell("single", 1, 1.0, 500)),
        (eight, four._replace(r=0.5)),
        (eight, four._replace(k=1000)),
        (all_negatives._replace(k=100_000), all_negatives._replace(k=1_000_000)),
    ]:
        assert published(one, other) is None, (one, other)


# ------------------------------------------------------------------------------- tables


@pytest.fixture
def ablation(tmp_path):
    """A finished grid of four cells and two seeds, with baselines; the words of the command."""
    return ablation_words(tmp_path)


def table(words: list[str], name: str = "table.csv") -> dict[tuple[str, ...], dict[str, str]]:
    assert main(["ablate", *words]) == 0
    path = Path(words[words.index("--output") + 1]).with_name(name)
    keys = ("name", "metric") if name == "table.csv" else ("first", "second", "metric")
    with path.open(newline="") as handle:
        return {tuple(row[key] for key in keys): row for row in csv.DictReader(handle)}


def test_the_table_has_means_and_differences_by_seed(ablation):
    rows = table(ablation)
    mlc = rows[MLC.name, "knn_20"]
    assert (mlc["seeds"], mlc["mean"], mlc["difference"]) == ("2", "0.51000", "-0.03050")
    truth = stats.ttest_rel([0.50, 0.52], [0.53, 0.551]).confidence_interval(0.95)
    assert float(mlc["difference_half_width"]) == pytest.approx(
        (truth.high - truth.low) / 2, abs=1e-5
    )
    assert rows[MLCD.name, "knn_20"]["difference"] == ""
    # Pixels have one value, which goes with every seed; random weights are paired.
    assert rows["pixels", "knn_20"]["paired_seeds"] == "2"
    assert float(rows["pixels", "knn_20"]["difference"]) == pytest.approx(0.3 - 0.5405)
    assert float(rows["random", "knn_20"]["difference"]) == pytest.approx(0.25 - 0.5405)


def test_orders_are_of_pairs_that_differ_in_one_thing(ablation):
    rows = table(ablation, "orders.csv")
    knn = {key[:2]: row for key, row in rows.items() if key[2] == "knn_20"}
    assert set(knn) == {
        (MLCD.name, MLC.name), (MLCD.name, SINGLE.name), (MLC.name, SINGLE.name),
        (MLCD.name, ONE.name), (ONE.name, SINGLE.name),
    }  # fmt: skip
    assert knn[MLCD.name, MLC.name]["verdict"] == "above"
    assert knn[MLCD.name, SINGLE.name]["verdict"] == "open"
    assert knn[MLCD.name, ONE.name]["verdict"] == "below"
    assert knn[MLCD.name, ONE.name]["factor"] == "l"
    assert knn[MLCD.name, ONE.name]["paper_first"] == "75.2"
    assert knn[MLC.name, SINGLE.name]["paper_first"] == ""


def test_every_two_cells_of_the_study_that_differ_in_one_thing_are_compared(tmp_path):
    study = yaml.safe_load((ROOT / "demo" / "ablation.yaml").read_text())
    own = Cell("mlcd", study["label"]["top"], study["train"]["negative_ratio"], 64)
    cells = dict.fromkeys(cell for cell, _ in Ablate(**study["ablate"]).runs(own))
    runs = [finished(tmp_path, cell, 0, 0.1 * n) for n, cell in enumerate(cells)]
    # Another reference does not make other pairs.
    words = ["--runs", *runs[::-1], "--output", str(tmp_path / "table.csv")]
    rows = table(words, "orders.csv")
    short = {"mlcd-l8": "eight", "mlcd-l4": "four", "mlcd-l1": "one", "mlc-l8": "mlc",
             "single-l1": "single"}  # fmt: skip
    found = set()
    for first, second, metric in rows:
        if metric == "knn_20":
            (a, r), (b, s) = (name.removesuffix("-k64").rsplit("-r", 1) for name in (first, second))
            found.add((short[a], short[b], r if r == s else "both"))
    assert found == {
        *((a, b, "0.1") for a, b in (("eight", "four"), ("eight", "one"), ("four", "one"))),
        *((name, "single", "0.1") for name in ("eight", "four", "one")),
        *((a, b, r) for a, b in (("eight", "mlc"), ("mlc", "single")) for r in ("0.1", "1")),
        ("eight", "single", "1"),
        *((name, name, "both") for name in ("eight", "mlc", "single")),
    }  # fmt: skip


def test_the_setting_is_chosen_on_other_seeds_and_pictures_than_the_study():
    study, choice = (
        yaml.safe_load((ROOT / "demo" / f"{name}.yaml").read_text())
        for name in ("ablation", "choose")
    )
    merged = {**study, **choice, "evaluate": {**study["evaluate"], **choice["evaluate"]}}
    config = validate(Config, merged, "demo/choose.yaml")
    runs = config.ablate.runs(config.own_cell)
    assert {cell.loss for cell, _ in runs} == {"mlcd", "single"}
    assert not {seed for grid in study["ablate"]["grids"] for seed in grid["seeds"]} & {
        seed for _, seed in runs
    }
    assert config.results != study["results"]
    (data,) = config.evaluate.datasets
    assert data.path != study["evaluate"]["datasets"][0]["path"] and data.tasks == ["knn"]


def test_equal_inputs_give_equal_bytes_and_a_table_to_read(ablation, tmp_path):
    table(ablation)
    names = ("table.csv", "table.md", "orders.csv")
    first = [(tmp_path / "ablate" / name).read_bytes() for name in names]
    table(ablation)
    assert first == [(tmp_path / "ablate" / name).read_bytes() for name in names]
    text = first[1].decode()
    assert "| mlc-l8-r0.1-k64 | 2 | 0.5100 ± 0.1271 | -0.0305 ± 0.0064 |" in text
    assert "| mlcd-l8-r0.1-k64 − mlcd-l1-r0.1-k64 | +3.8 |" in text
    assert "All seeds share one clustering and labelling" in text
    # Of the baselines, pixels has one value; random weights have as many as the cells.
    assert "`pixels`: scored with one seed" in text


def test_a_baseline_of_all_seeds_is_not_called_one_value(ablation, tmp_path):
    words = [word for word in ablation if not word.endswith("pixels.json")]
    table(words)
    assert "scored with one seed" not in (tmp_path / "ablate" / "table.md").read_text()


def test_runs_that_do_not_fit_are_refused(ablation, tmp_path, capsys):
    def refused(*words: str) -> str:
        assert main(["ablate", *words, "--output", str(tmp_path / "t.csv")]) == 2
        return capsys.readouterr().err

    run = ablation[1]
    assert "is given twice" in refused("--runs", run, run)
    assert "no run is of mlcd-l2" in refused("--runs", run, "--reference", "mlcd-l2-r0.1-k64")
    other = finished(tmp_path / "other", ONE, 5, 0.5, epochs=3)
    assert "train.epochs is 3, and 2 in" in refused("--runs", run, other)
    for whose in ({"encoder_sha256": "another"}, {}):
        scores(Path(other) / "evaluate" / "trained.json", "trained", 5, 0.5, **whose)
        assert "not the scores of the encoder of" in refused("--runs", other)
    (Path(other) / "evaluate" / "trained.json").write_text("{}")
    assert "holds no scores; rerun evaluate" in refused("--runs", other)
    (Path(other) / "train" / "encoder.json").write_text('{"section": {}}')
    assert "does not describe a training" in refused("--runs", other)
    assert "no such file" in refused("--runs", str(tmp_path / "nowhere"))


# ----------------------------------------------------------------------------- the page


def test_the_page_says_which_orders_hold(ablation, tmp_path):
    table(ablation)
    page = tmp_path / "page.html"
    words = ["--ablation", str(tmp_path / "ablate" / "table.csv"),
             "--orders", str(tmp_path / "ablate" / "orders.csv")]  # fmt: skip
    assert main(["report", "--part", "ablate", *words, "--output", str(page)]) == 0
    html = page.read_text()
    # Two metrics: mlcd over mlc holds, over l = 1 is reversed, over single stays open.
    assert "Of 6 orders that the paper reports, 2 hold here, 2 are reversed, 2 stay open" in html
    assert "mlcd, l = 8, r = 0.1" in html and "+0.030 ± 0.006: first is better" in html
    (tmp_path / "ablate" / "table.csv").write_text("a,b\n1,2\n")
    assert main(["report", "--part", "ablate", *words, "--output", str(page)]) == 2


# ------------------------------------------------------------------------ Fashion-MNIST


def test_idx_files_are_read_and_others_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "demo"), *sys.path])
    spec = importlib.util.spec_from_file_location(
        "fashion_mnist", ROOT / "demo" / "fashion_mnist.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    levels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    head = b"\0\0\x08\x03" + np.array(levels.shape, ">i4").tobytes()
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(head + levels.tobytes()))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(b"\0\0\x08\x01" + np.array([2], ">i4").tobytes() + bytes([9, 0]))
    )
    assert np.array_equal(module.read_idx(path), levels)
    (first,) = module.pictures(tmp_path, "train", 0, 1)
    assert (first.key, first.label) == ("train-00000", "ankle boot")
    for bad in (b"", b"\0\0\x08\x03\0", head + levels.tobytes()[1:]):
        path.write_bytes(gzip.compress(bad))
        with pytest.raises(UserError, match="no idx file of bytes"):
            module.read_idx(path)
    path.unlink()
    with pytest.raises(UserError, match="install dataset-fashion-mnist"):
        module.read_idx(path)

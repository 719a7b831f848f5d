"""The tables of an ablation: means, differences, orders, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from scipy import stats

from helpers.ablate_runs import MLC, MLCD, ONE, SINGLE, ablation_words, finished, scores, table
from helpers.paths import ROOT
from mlcd.cli import main
from mlcd.config import Ablate, Cell, Config, validate
from mlcd.utils.records import write_record


@pytest.fixture
def ablation(tmp_path):
    """A finished grid of four cells and two seeds, with baselines; the words of the command."""
    return ablation_words(tmp_path)


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


def test_the_setting_is_chosen_on_other_seeds_and_images_than_the_study():
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
    assert "All seeds share one clustering and labeling" in text
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
    grounds = [
        ({"images": ["a"]}, {"images": ["b"]}, ONE, SINGLE, "other images than"),
        ({"centroids": ["a"]}, {"centroids": ["b"]}, ONE, SINGLE, "other centers of K = 64 than"),
        ({"centroids": ["a"]}, {"centroids": ["b"]}, ONE, ONE._replace(k=32), None),
    ]
    for number, (first, second, cell, beside, message) in enumerate(grounds):
        folder = tmp_path / f"grounds-{number}"
        runs = [
            finished(folder, one, seed, 0.5, made_from=made)
            for seed in (0, 1)
            for one, made in ((cell, first), (beside, second))
        ]
        if message:
            assert message in refused("--runs", *runs, "--reference", cell.name)
        else:
            table(["--runs", *runs, "--reference", cell.name, "--output", f"{folder}/table.csv"])
    runs = [finished(tmp_path / "sets", ONE, seed, 0.5) for seed in (0, 1)]
    for seed, run_of in enumerate(runs):
        path = Path(run_of) / "evaluate" / "trained.json"
        few = {"scores": {"knn_20": 0.5}, "chance": {}, "images": {"test": 90 + seed}}
        sha256 = f"{ONE.name} {seed}"
        about = {"model": "trained", "seed": seed, "encoder_sha256": sha256}
        write_record(path, {**about, "datasets": {"few": few}})
    assert "other images of few than" in refused("--runs", *runs)
    for whose in ({"encoder_sha256": "another"}, {}):
        scores(Path(other) / "evaluate" / "trained.json", "trained", 5, 0.5, **whose)
        assert "not the scores of the encoder of" in refused("--runs", other)
    write_record(Path(other) / "evaluate" / "trained.json", {})
    assert "holds no scores; rerun evaluate" in refused("--runs", other)
    write_record(Path(other) / "train" / "encoder.json", {"section": {}})
    assert "does not describe a training" in refused("--runs", other)
    assert "no such file" in refused("--runs", str(tmp_path / "nowhere"))

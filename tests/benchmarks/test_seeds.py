"""benchmarks/seeds.py: what is run again, what is not, and the table."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from helpers.builders import centroids_file, embeddings_file, labels_file, unit_vectors
from helpers.paths import ROOT


@pytest.fixture
def seeds(tmp_path, monkeypatch):
    """The script in a folder with a finished run; its two stages write a summary and are listed."""
    spec = importlib.util.spec_from_file_location("seeds", ROOT / "benchmarks" / "seeds.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    centers(0)
    vectors = embeddings_file(tmp_path / "results/embeddings/a-00000.h5", unit_vectors(9, 4))
    labels_file(tmp_path / "results/labels/a-00000.h5", np.zeros((9, 1)), 3, vectors)
    (tmp_path / "few.tar").write_bytes(b"few")
    config(epochs=1)
    module.ran = []

    def run(stage, *words):
        words = [str(word) for word in words]
        seed = int(words[words.index("--seed") + 1])
        module.ran.append((stage, seed))
        if stage == "train":
            folder = Path(words[words.index("--output") + 1])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "encoder.json").write_text("{}")
        else:
            assert module.failing != seed
            assert words[words.index("--embed-config") + 1] == "config.yaml"
            folder = Path(words[words.index("--output") + 1])
            folder.mkdir(parents=True, exist_ok=True)
            rows = [f"{model},few,knn,{value + seed / 10},{seed}"
                    for model, value in (("random", 0.25), ("trained", 0.5))]  # fmt: skip
            lines = ["model,dataset,metric,value,seed", *rows]
            (folder / "summary.csv").write_text("\n".join(lines))

    module.failing = None
    monkeypatch.setattr(module, "run", run)
    return module


def centers(seed: int) -> None:
    centroids_file(Path("results/clusters/centroids.h5"), unit_vectors(3, 4, seed=seed))


def config(**train: object) -> None:
    datasets = [{"name": "few", "path": "few.tar", "label_field": "top"}]
    values = {"train": train, "evaluate": {"datasets": datasets}}
    Path("config.yaml").write_text(yaml.safe_dump(values))


def ran(seeds, monkeypatch, *words: str) -> list[tuple[str, int]]:
    """Run the script with seeds 0 and 1; return the stages it ran."""
    seeds.ran.clear()
    monkeypatch.setattr(sys, "argv", ["seeds.py", "--output", "out", "--seeds", "0", "1", *words])
    seeds.main()
    return list(seeds.ran)


BOTH = [("train", 0), ("evaluate", 0), ("train", 1), ("evaluate", 1)]

EVALUATED = [("evaluate", 0), ("evaluate", 1)]


def test_a_seed_is_run_again_when_what_it_depends_on_changed(seeds, monkeypatch):
    assert ran(seeds, monkeypatch) == BOTH
    assert "| trained − random | 0.2500 ± 0.0000 |" in Path("out/seeds.md").read_text()
    assert ran(seeds, monkeypatch) == []
    config(epochs=2)
    assert ran(seeds, monkeypatch) == BOTH
    config(epochs=2, seed=5)  # --seeds stands in for it
    assert ran(seeds, monkeypatch) == []
    centers(1)
    assert ran(seeds, monkeypatch) == BOTH
    monkeypatch.setattr(seeds, "code_hash", lambda stage: stage)
    assert ran(seeds, monkeypatch) == BOTH
    assert ran(seeds, monkeypatch, "--ranks", "1") == BOTH
    # What only the scores depend on: the encoders are used again.
    Path("few.tar").write_bytes(b"other")
    assert ran(seeds, monkeypatch, "--ranks", "1") == EVALUATED
    assert ran(seeds, monkeypatch, "--ranks", "1", "--models", "frozen", "trained") == EVALUATED
    monkeypatch.setattr(seeds, "code_hash", lambda stage: stage.removesuffix("uate"))
    assert ran(seeds, monkeypatch, "--ranks", "1") == EVALUATED


def test_a_run_cut_off_leaves_no_seed_that_looks_finished(seeds, monkeypatch):
    ran(seeds, monkeypatch)
    config(epochs=2)
    seeds.failing = 0
    with pytest.raises(AssertionError):
        ran(seeds, monkeypatch)
    seeds.failing = None
    assert ran(seeds, monkeypatch) == [("evaluate", 0), *BOTH[2:]]
    seeds.failing = 0
    Path("few.tar").write_bytes(b"other")
    with pytest.raises(AssertionError):
        ran(seeds, monkeypatch)
    seeds.failing = None
    Path("few.tar").write_bytes(b"few")  # as before, but the run between left its mark
    assert ran(seeds, monkeypatch) == [("evaluate", 0)]


def test_a_run_without_labels_or_data_is_refused(seeds, monkeypatch):
    Path("few.tar").unlink()
    with pytest.raises(seeds.UserError, match=r"evaluate.datasets: few: few.tar: no such file"):
        ran(seeds, monkeypatch)
    with pytest.raises(seeds.UserError, match="nowhere/labels: holds no labels"):
        ran(seeds, monkeypatch, "--results", "nowhere")

"""Own labels: joined, checked, summarized, and enough for the training's index."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from helpers.builders import image_store
from helpers.label_runs import pair
from helpers.label_runs import run as mlcd_label
from mlcd.cli import main
from mlcd.data.centroids import Centroids
from mlcd.data.image_store import ImageStore
from mlcd.data.labels import Labels
from mlcd.stages.train import inputs
from mlcd.utils.errors import UserError
from mlcd.utils.records import read_record

OWN = np.array([[3, 1], [-1, 0], [2, 2], [-1, -1], [0, 4], [1, -1]])


def label(folder: Path, rows: np.ndarray, *options: str) -> int:
    np.save(folder / "l.npy", rows)
    return main(
        ["label", "--images", str(folder / "images/c-00000"), "--labels", str(folder / "l.npy"),
         "--classes", "5", "--top", "2", "--output", str(folder / "c-00000.h5"), *options]
    )  # fmt: skip


def test_labels_alone_are_enough_to_train_on(tmp_path: Path) -> None:
    manifest = image_store(tmp_path / "images/c-00000", 6)
    assert label(tmp_path, OWN) == 0
    found = Labels(tmp_path / "c-00000.h5")
    # What is none stands last, as the training expects it.
    assert found.label().tolist() == [[3, 1], [0, -1], [2, 2], [-1, -1], [0, 4], [1, -1]]
    assert not found.has_similarity and found.num_classes == 5
    sources = inputs.check([found.path], [], [str(manifest)], None)
    assert sources.num_classes == 5
    # The image without any label is left out.
    assert inputs.build_index(sources, tmp_path / "index") == 5
    index = inputs.Index(tmp_path / "index")
    store = ImageStore(manifest)
    rows = store.arrived().set_index("key").loc[[f"{row:09d}" for row in (0, 1, 2, 4, 5)]]
    assert index.place["offset"].tolist() == rows["offset"].tolist()
    assert index.label[:, 0].tolist() == [3, 0, 2, 0, 1]
    image_store(tmp_path / "images/c-00000", 6, seed=5)
    with pytest.raises(UserError, match="made for other images"):
        inputs.check([found.path], [], [str(manifest)], None)


def test_a_summary_needs_no_centers(tmp_path: Path) -> None:
    image_store(tmp_path / "images/c-00000", 6)
    assert label(tmp_path, OWN) == 0
    output = tmp_path / "summary.json"
    words = ["label", "--summarize", str(tmp_path / "c-00000.h5"), "--output", str(output)]
    assert main(words) == 0
    summary = read_record(output, "label")
    assert summary["search"]["mode"] == "own" and summary["near_duplicate_centers"] is None
    assert summary["images_by_number_of_labels"] == {"0": 1, "1": 2, "2": 3}
    assert summary["use_as_any_label"]["mean"] == 8 / 5


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.where(OWN == 4, 5, OWN), "row 4 of own labels holds 5, and classes are 0 to 4"),
        (np.where(OWN == -1, -2, OWN), "row 1 of own labels holds -2"),
        (OWN[:, :1], "label.top: 2 labels per image, but"),
        (OWN[:5], "6 rows, but 5 own rows are for it"),
        (OWN.astype(np.float32), "whole numbers, found float32"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    rows: np.ndarray, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_store(tmp_path / "images/c-00000", 6)
    assert label(tmp_path, rows) == 2
    assert message in capsys.readouterr().err


def test_centers_of_a_plain_file_label_as_ours(tmp_path: Path) -> None:
    embeddings, centroids = pair(tmp_path, n=80, k=9, d=6)
    centers = Centroids(centroids).array
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["centroid"] = 3 * centers
    np.save(tmp_path / "plain.npy", centers.astype(np.float64))
    found = []
    for name in (centroids, tmp_path / "plain.h5", tmp_path / "plain.npy"):
        output = tmp_path / f"out/{len(found)}.h5"
        assert mlcd_label("--embeddings", embeddings, "--centroids", name, "--output", output,
                          "--top", 3) == 0  # fmt: skip
        found.append(Labels(output).label())
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_given_centers_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, centroids = pair(tmp_path, n=80, k=9, d=6)
    np.save(tmp_path / "c.npy", 2 * Centroids(centroids).array)
    output = tmp_path / "out/centroids.h5"
    words = ["cluster", "--output", str(output), "--k", "9", "--centers"]
    assert main([*words, str(tmp_path / "c.npy")]) == 0
    kept = Centroids(output)
    np.testing.assert_allclose(kept.array, Centroids(centroids).array, atol=1e-7)
    assert not kept.sizes.any() and (tmp_path / "out/iterations.jsonl").read_text() == ""
    # What stage cluster knew of its centers stays known.
    assert main([*words, str(centroids)]) == 0
    ours, before = Centroids(output), Centroids(centroids)
    np.testing.assert_array_equal(ours.sizes, before.sizes)
    assert ours.model == before.model
    assert main(["cluster", "--output", str(output), "--k", "8", "--centers", str(centroids)]) == 2
    assert "has 9 centers, and cluster.k is 8" in capsys.readouterr().err
    assert main([*words, str(output)]) == 2
    np.save(tmp_path / "zero.npy", np.zeros((9, 6), np.float32))
    assert main([*words, str(tmp_path / "zero.npy")]) == 2
    assert "center 0 is zero or not finite" in capsys.readouterr().err

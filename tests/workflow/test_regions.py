"""The workflow with regions: what it makes, what a change makes stale, what stops it."""

from __future__ import annotations

import pandas as pd
import pytest

from helpers.checkout import ROWS, Checkout, serving
from helpers.paths import ROOT
from mlcd.data.centroids import Centroids
from mlcd.data.embeddings import Embeddings
from mlcd.data.hdf5 import fingerprint
from mlcd.data.labels import Labels
from mlcd.data.region_store import RegionStore
from mlcd.utils.files import read_json

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(
        not (ROOT / "demo" / "openclipart.tar").exists(), reason="demo/openclipart.tar is missing"
    ),
    pytest.mark.timeout(900),
]

#: Boxes of the list: of every image its quarters, and of every fourth none.
QUARTERS = [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
REGIONS = {"source": "column", "column": "boxes", "unit": "shares", "most": 3}
SECTIONS = {
    "metadata": ["lists/first.parquet"],
    "regions": REGIONS,
    "train": {"regions": "boxes", "regions_per_image": 2, "epochs": 1},
}


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with regions whose workflow has run up to the training on them."""
    base = tmp_path_factory.mktemp("run")
    checkout = Checkout(base / "checkout")
    with serving(base / "site") as url:
        checkout.write_images(url, base / "site")
        path = checkout.folder / "lists" / "first.parquet"
        table = pd.read_parquet(path)
        table["boxes"] = [QUARTERS if row % 4 else None for row in range(len(table))]
        table.to_parquet(path, index=False)
        checkout.configure(**SECTIONS)
        targets = ["results/labels/summary.json", "results/train/regions.safetensors"]
        done = checkout.snakemake("--cores", "2", *targets)
    assert done.returncode == 0, done.stdout[-6000:]
    return checkout


def test_regions_are_rows_among_the_images(labeled: Checkout) -> None:
    results = labeled.folder / "results"
    vectors = regions = 0
    for name in ("first-00000", "first-00001"):
        store = RegionStore(results / "regions" / f"{name}.h5")
        source = Embeddings(results / "embeddings" / f"{name}.h5")
        assert store.images().tolist() == [row for row in range(ROWS) if row % 4 for _ in range(3)]
        assert store.source == source.fingerprint
        labels = Labels(results / "regions" / "labels" / f"{name}.h5")
        assert (labels.n, labels.l) == (store.n, 2)
        assert labels.embeddings == store.fingerprint
        vectors, regions = vectors + source.n + store.n, regions + store.n
    centers = Centroids(results / "clusters" / "centroids.h5")
    assert int(centers.sizes.sum()) == vectors == 2 * ROWS + regions


def test_the_training_rests_on_the_regions(labeled: Checkout) -> None:
    results = labeled.folder / "results"
    about = read_json(results / "train" / "encoder.json")
    for name, folder in (("regions", "regions"), ("region_labels", "regions/labels")):
        paths = sorted((results / folder).glob("*.h5"))
        assert about["made_from"][name] == [fingerprint(path) for path in paths]
        assert len(paths) == 2
    assert about["section"]["regions"] == "boxes"


def test_what_a_change_makes_stale(labeled: Checkout) -> None:
    def science(**changes: object) -> dict[str, int]:
        labeled.configure(**{**SECTIONS, **changes})
        found = labeled.stale("results/labels/summary.json", *targets)
        return {rule: jobs for rule, jobs in found.items() if not rule.startswith("report")}

    targets = [f"results/regions/labels/first-{chunk:05d}.h5" for chunk in (0, 1)]
    labeled.configure(**SECTIONS)
    assert labeled.stale("results/train/regions.safetensors") == {}
    after = {"cluster": 1, "label": 2, "label_summary": 1, "regions_label": 2}
    assert science() == {}
    assert science(regions={**REGIONS, "max_failed": 0.5, "segment_side": 64}) == {}
    assert science(regions={**REGIONS, "most": 2}) == {"regions": 2, **after}
    assert science(label={"top": 1}) == {"label": 2, "label_summary": 1, "regions_label": 2}
    # Without regions the clustering is of other rows.
    labeled.configure(metadata=SECTIONS["metadata"])
    found = labeled.stale("results/labels/summary.json")
    assert found == {"cluster": 1, "label": 2, "label_summary": 1}


def test_labels_of_regions_that_were_removed_are_made_again(labeled: Checkout) -> None:
    labeled.configure(**SECTIONS)
    path = labeled.folder / "results" / "regions" / "labels" / "first-00001.h5"
    kept = path.read_bytes()
    path.unlink()
    try:
        assert labeled.stale()["regions_label"] == 1
    finally:
        path.write_bytes(kept)


def test_mistakes_are_told_at_the_start(labeled: Checkout) -> None:
    def said(**keys: object) -> str:
        labeled.configure(**{"metadata": SECTIONS["metadata"], **keys})
        done = labeled.snakemake("--dry-run")
        assert done.returncode != 0
        return done.stdout

    assert "regions.column: lists/first.parquet has no column 'bbox'" in said(
        regions={**REGIONS, "column": "bbox"}
    )
    assert "regions.source: the frozen encoder embeds regions" in said(
        regions=REGIONS, label={"labels": ["l.npy"], "top": 1}, train={"center_init": "random"}
    )
    assert "train.regions: boxes are those of the stage regions" in said(train={"regions": "boxes"})
    assert "regions.unit: pixels are of images as served" in said(
        regions={**REGIONS, "unit": "pixels"}, download={"image_size": 64}
    )

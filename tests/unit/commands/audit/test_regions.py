"""A run with regions as a chain: sealed, verified, explained, made again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.audit_changes import audit
from helpers.region_runs import EMBED, Chunk
from helpers.small_runs import mlcd
from mlcd.commands.audit.nodes import stage_of
from mlcd.config import Cluster, Label, Regions

pytest.importorskip("skimage", reason="the extra regions is not installed")

#: Boxes of people's own would come from outside, and are not made again.
SEGMENTS = {
    "source": "felzenszwalb",
    "segment_side": 96,
    "segment_pixels": 40,
    "column": None,
    "tables": None,
}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a run with regions up to its labels, sealed."""
    results = tmp_path_factory.mktemp("regions") / "results"
    made = Chunk(results)
    made.table = ""
    (results / "boxes.parquet").unlink()
    assert made.run(**SEGMENTS) == 0
    cluster, label = Cluster(k=3), Label(top=2)
    centers = results / "clusters" / "centroids.h5"
    vectors = [made.embeddings, made.output]
    mlcd("cluster", "--embeddings", *vectors, "--config", cluster.for_centroids(),
         "--output", centers)  # fmt: skip
    for path, folder in zip(vectors, ("labels", "regions/labels"), strict=True):
        mlcd("label", "--embeddings", path, "--centroids", centers, "--config",
             label.for_labels(), "--output", results / folder / path.name)  # fmt: skip
    sections = {
        "download": {}, "embed": EMBED.model_dump(mode="json"),
        "regions": Regions(**SEGMENTS).model_dump(mode="json"),
        "cluster": cluster.model_dump(mode="json"), "label": label.model_dump(mode="json"),
    }  # fmt: skip
    stages = {name: {"section": one, "code": "a" * 16} for name, one in sections.items()}
    mlcd("audit", "seal", results, "--stages", json.dumps(stages), "--inputs")
    return results


def test_the_chain_leads_through_the_regions(sealed: Path) -> None:
    assert audit("verify", str(sealed))[0] == 0
    status, said = audit("explain", str(sealed), "clusters/centroids.h5")
    assert status == 0
    for word in ("by stage regions", "regions/a-00000.h5", "embeddings/a-00000.h5"):
        assert word in said, said
    status, said = audit("explain", str(sealed), "regions/a-00000.h5")
    assert status == 0
    for word in ("goes into clusters/centroids.h5", "goes into regions/labels/a-00000.h5"):
        assert word in said, said
    assert stage_of("regions/labels/a-00000.h5") == "label"


def test_every_file_of_regions_is_made_again(sealed: Path) -> None:
    status, said = audit("replay", str(sealed), "--all", "--stage", "regions", "cluster", "label")
    assert status == 0, said
    for name in ("regions/a-00000", "regions/labels/a-00000", "clusters"):
        assert any(name in line and ": equal" in line for line in said.splitlines()), said


def test_a_changed_box_is_found(sealed: Path) -> None:
    import h5py

    path = sealed / "regions" / "a-00000.h5"
    before = path.read_bytes()
    with h5py.File(path, "r+") as file:
        file["box"][0] = [0, 0, 0.5, 0.5]
    try:
        assert audit("verify", str(sealed), "--bytes")[0] == 1
    finally:
        path.write_bytes(before)

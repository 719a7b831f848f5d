"""A curated run as a chain: sealed, explained, compared with what its files say, made again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.audit_changes import audit
from helpers.builders import set_attributes, unit_vectors
from helpers.curate_runs import Run, run
from mlcd import cli
from mlcd.commands.audit.explain import image
from mlcd.config import Cluster, Curate, Label
from mlcd.data.curation import Curation

KEYS = {"duplicate_similarity": 0.94, "cluster_cap": 9}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a curated run up to its labels, sealed."""
    results = tmp_path_factory.mktemp("curated") / "results"
    made = Run(results, unit_vectors(80, 16, groups=6, seed=1), chunks=2, **KEYS)
    section = Curate(enabled=True, clusters=4, **KEYS)
    made.centroids.unlink()
    made.centroids = results / "curate" / "centroids.h5"
    small = section.for_clusters(80)
    vectors = ["--embeddings", *map(str, made.embeddings)]
    assert not cli.main(["cluster", *vectors, "--output", str(made.centroids), "--config", small])
    made.facts()
    for path, one in zip(made.embeddings, made.choose(), strict=True):
        output = results / "curate" / "embeddings" / path.name
        assert not run("kept", "--embeddings", path, "--rows", one.path, "--output", output)
    kept = [str(results / "curate" / "embeddings" / path.name) for path in made.embeddings]
    cluster, label = Cluster(k=5), Label(top=2)
    centers = str(results / "clusters" / "centroids.h5")
    words = ["--config", cluster.for_centroids(), "--output", centers]
    assert not cli.main(["cluster", "--embeddings", *kept, *words])
    for path in kept:
        words = ["--centroids", centers, "--config", label.for_labels()]
        output = str(results / "labels" / Path(path).name)
        assert not cli.main(["label", "--embeddings", path, *words, "--output", output])
    sections = {"embed": {}, "download": {}, "curate": section, "cluster": cluster, "label": label}
    stages = {
        name: {"section": one if isinstance(one, dict) else one.model_dump(mode="json"),
               "code": "a" * 16}
        for name, one in sections.items()
    }  # fmt: skip
    words = ["--stages", json.dumps(stages), "--inputs"]
    assert not cli.main(["audit", "seal", str(results), *words])
    return results


def test_the_chain_leads_through_the_decisions(sealed: Path) -> None:
    assert audit("verify", str(sealed))[0] == 0
    status, said = audit("explain", str(sealed), "clusters/centroids.h5")
    assert status == 0
    for word in ("by stage curate", "curate/embeddings/a-00000.h5", "by stage embed"):
        assert word in said, said
    status, said = audit("explain", str(sealed), "embeddings/a-00000.h5")
    assert status == 0 and "goes into labels/a-00000.h5" in said


def test_an_image_is_told_to_be_left_out_and_for_what(sealed: Path) -> None:
    told = set()
    for path in sorted((sealed / "curate" / "rows").iterdir()):
        rows = Curation(path)
        for row, key in enumerate(rows.keys().tolist()):
            decision, said = rows.decision(row), image(sealed, rows.chunk, key.decode())
            if decision is None:
                assert "clusters, nearest first" in said[-1] and len(said) == 5
                continue
            expected = f"  left out by curate: {decision.reason}"
            if decision.reason == "duplicate":
                expected += (
                    f" of {decision.chunk}/{decision.row:09d} (cosine {decision.similarity:.3f}), "
                    "which is kept"
                )
            assert said[-1] == expected
            told.add(decision.reason)
    assert told == {"duplicate", "cap"}


def test_every_file_of_the_stage_is_made_again(sealed: Path) -> None:
    status, said = audit("replay", str(sealed), "--all", "--stage", "curate", "cluster", "label")
    assert status == 0, said
    for name in ("curate: ", "curate/rows: ", "curate/facts/a", "curate/embeddings/a"):
        assert any(name in line and ": equal" in line for line in said.splitlines()), said


def test_a_forged_decision_is_found(sealed: Path) -> None:
    path = sealed / "curate" / "rows" / "a-00001.h5"
    before = path.read_bytes()
    set_attributes(path, chunk="a-00009")
    try:
        assert audit("verify", str(sealed))[0] == 1
    finally:
        path.write_bytes(before)
    assert np.count_nonzero(Curation(path).kept()) < Curation(path).n

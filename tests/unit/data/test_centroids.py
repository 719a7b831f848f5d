"""Centers say of themselves how they were made; what is no JSON there is refused by name."""

from __future__ import annotations

import types

import numpy as np
import pytest

from helpers.builders import embeddings_file, unit_vectors
from mlcd.commands.explore.encoder import QueryEncoder
from mlcd.config import Report
from mlcd.data import centroids
from mlcd.data.centroids import Centroids
from mlcd.data.embeddings import Embeddings
from mlcd.stages.export import card
from mlcd.stages.label import nearest
from mlcd.stages.report import cluster
from mlcd.utils.errors import UserError


def write(path, **attributes):
    rows = unit_vectors(5, 4)
    centroids.write(
        path, centroid=rows, size=np.ones(5), objective=np.zeros(1), empty=np.zeros(1),
        attributes={"model": "", "embeddings": "[]", "section": "{}", **attributes},
    )  # fmt: skip
    return path


@pytest.mark.parametrize("text", ['{"name": "ViT', "ViT-B-32", "[1, 2]", "3", "[" * 100_000])
def test_every_reader_refuses_an_attribute_that_is_no_json_object(tmp_path, text):
    model = write(tmp_path / "model.h5", model=text)
    section = write(tmp_path / "section.h5", section=text)
    vectors = Embeddings(embeddings_file(tmp_path / "e.h5", unit_vectors(6, 4)))
    run = types.SimpleNamespace(centroids=Centroids(model))
    readers = [
        (model, lambda: Centroids(model).described),
        (model, lambda: nearest._check(vectors, Centroids(model))),
        (model, lambda: cluster.draw(Report(), str(model))),
        (model, lambda: card._clusters(str(model), {})),
        (model, lambda: card._sections(str(model), None, {})),
        (model, lambda: QueryEncoder(run, None, device="cpu", threads=1, max_pixels=9)),
        (section, lambda: Centroids(section).settings),
        (section, lambda: cluster.draw(Report(), str(section))),
        (section, lambda: card._sections(str(section), None, {})),
    ]
    for path, read in readers:
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value) == (
            f"{path}: attribute {path.stem} is no JSON object; rerun cluster"
        )


def test_what_is_there_and_what_is_not_known(tmp_path):
    said = write(tmp_path / "said.h5", model='{"name": "a"}', section='{"k": 5}')
    assert (Centroids(said).described, Centroids(said).settings) == ({"name": "a"}, {"k": 5})
    empty = write(tmp_path / "empty.h5")
    np.save(tmp_path / "other.npy", unit_vectors(5, 4))
    for path in (empty, tmp_path / "other.npy"):
        assert (Centroids(path).described, Centroids(path).settings) == ({}, {})

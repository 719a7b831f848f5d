"""Labels find their images; those of other images, or of other embeddings, are refused by name."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from helpers.builders import embeddings_file, image_store, labels_file, set_attributes, unit_vectors
from helpers.explored_runs import write_run
from mlcd import cli
from mlcd.data.labels import Labels
from mlcd.utils.errors import UserError


@pytest.fixture
def results(tmp_path):
    return write_run(tmp_path / "results", (7, 5))


def test_each_row_has_its_image(results):
    for number, size in enumerate((7, 5)):
        labels = Labels(results / "labels" / f"photos-{number:05d}.h5")
        found = labels.images_in(results, ["caption"])
        assert found["key"].tolist() == [f"{row:09d}" for row in range(size)]
        assert found["caption"].tolist() == [f"<i>caption</i> {number} {i}" for i in range(size)]


def test_files_that_are_not_of_one_another_are_refused(results):
    path = results / "labels" / "photos-00000.h5"
    vectors = results / "embeddings" / "photos-00000.h5"
    images = results / "images" / "photos-00000"
    other = image_store(results.parent / "other", 7, seed=9)
    made = embeddings_file(results.parent / "e.h5", unit_vectors(7, 8), manifest=other)
    kept = vectors.read_bytes()
    shutil.copyfile(made, vectors)
    with pytest.raises(UserError, match=r"photos-00000\.h5: of other embeddings than"):
        Labels(path).images_in(results, [])
    labels_file(path, np.zeros((7, 1)), 6, vectors)
    with pytest.raises(UserError, match=r"photos-00000\.h5: of other images than"):
        Labels(path).images_in(results, [])
    vectors.write_bytes(kept)
    labels_file(path, np.zeros((3, 1)), 6, vectors)
    with pytest.raises(UserError, match="its rows are not those of"):
        Labels(path).images_in(results, [])
    assert images.is_dir()


def test_an_embedding_without_its_image_is_one_line(results, capsys):
    """Of a file whose fingerprint was renewed: only the join can tell."""
    vectors = results / "embeddings" / "photos-00000.h5"
    words = ["convert", str(vectors), "--output", str(results.parent / "out"), "--to", "parquet",
             "--images", str(results / "images" / "photos-00000" / "manifest.json")]  # fmt: skip
    assert cli.main(words) == 0
    manifest = image_store(results / "images" / "photos-00000", 5, seed=9)
    from mlcd.data.image_store import ImageStore

    set_attributes(vectors, manifest=ImageStore(manifest).fingerprint)
    assert cli.main(words) == 2
    assert "rows.parquet: has no image 000000005" in capsys.readouterr().err

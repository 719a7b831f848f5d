"""Which files of labels, and which embeddings, are of a run."""

from __future__ import annotations

import pytest

from helpers.explored_runs import write_run
from mlcd.cli import main
from mlcd.data import hdf5
from mlcd.data.labels import Labels, of_run


@pytest.fixture
def results(tmp_path):
    return write_run(tmp_path / "results", (4, 5), 3, 2)


def summarize(results, labels):
    words = ["label", "--summarize", *map(str, labels)]
    centers = ["--centroids", str(results / "clusters" / "centroids.h5")]
    return main([*words, *centers, "--output", str(results / "labels" / "summary.json")])


def test_files_that_the_summary_does_not_count_are_of_another_config(results):
    first, second = every = sorted((results / "labels").glob("*.h5"))
    assert of_run(results) == every
    assert summarize(results, [second]) == 0
    assert of_run(results) == [second]
    # Labeled anew since: the summary is not of these.
    second.unlink()
    assert of_run(results) == [first]


def test_embeddings_of_labels_are_the_kept_ones_where_these_were_labeled(results):
    path = sorted((results / "labels").glob("*.h5"))[0]
    labels, name = Labels(path), path.name
    assert labels.embeddings_in(results) == results / "embeddings" / name
    curated = results / "curate" / "embeddings"
    curated.mkdir(parents=True)
    other = sorted((results / "embeddings").glob("*.h5"))[1]
    (curated / name).write_bytes(other.read_bytes())
    assert labels.embeddings_in(results) == results / "embeddings" / name
    (curated / name).write_bytes((results / "embeddings" / name).read_bytes())
    assert hdf5.fingerprint(curated / name) == labels.embeddings
    assert labels.embeddings_in(results) == curated / name

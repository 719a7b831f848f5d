"""Initial centers of the classifier."""

import numpy as np

from helpers.builders import centroids_file, unit_vectors
from mlcd.data.centroids import Centroids
from mlcd.stages.train.initial_centers import initial_rows, principal_axes


def test_initial_centers(tmp_path):
    vectors = unit_vectors(50, 20, seed=3)
    centroids_file(tmp_path / "c.h5", vectors)
    centroids = Centroids(tmp_path / "c.h5")
    same = initial_rows(centroids, 20, 10, 15, seed=0)
    assert np.allclose(same, vectors[10:15], atol=1e-6)
    wider = initial_rows(centroids, 32, 0, 50, seed=0).numpy()
    assert np.allclose(wider @ wider.T, vectors @ vectors.T, atol=1e-5)
    narrower = initial_rows(centroids, 6, 0, 50, seed=0).numpy()
    # Reference: principal components by singular value decomposition; cosines know no signs.
    centered = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    basis = np.linalg.svd(centered, full_matrices=False)[2][:6]
    expected = centered @ basis.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(narrower @ narrower.T, expected @ expected.T, atol=1e-5)
    assert np.array_equal(narrower[7:9], initial_rows(centroids, 6, 7, 9, seed=0).numpy())
    _, axes = principal_axes(iter([vectors[:30], vectors[30:]]), 6)
    assert (axes[np.abs(axes).argmax(0), np.arange(6)] > 0).all()


def test_a_center_without_direction_gets_one(tmp_path):
    centroids_file(tmp_path / "c.h5", np.tile(unit_vectors(1, 8), (3, 1)))
    rows = initial_rows(Centroids(tmp_path / "c.h5"), 4, 0, 3, seed=0).numpy()
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert abs(rows[0] @ rows[1]) < 0.999

"""The exact search below cluster and label, held to plain float64 scores."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import builders
from helpers.builders import unit_vectors
from helpers.search_cases import hard_case
from mlcd.neighbors import exact
from mlcd.neighbors.exact import ExactSearch


def test_the_nearest_l_are_the_first_of_any_larger_number_with_ties():
    centers = unit_vectors(40, 6)
    centers[20:30] = centers[:10]  # equal centers: the lower id wins at any number
    rows = unit_vectors(50, 6, seed=1)
    search = ExactSearch(centers, threads=1)
    eight = search.nearest(rows, 8)
    for l in (1, 2, 4, 7):
        assert np.array_equal(search.nearest(rows, l), eight[:, :l])


@pytest.mark.parametrize("l", [1, 2, 8, 110])
def test_close_calls_and_ties_are_settled_exactly(l: int) -> None:
    rows, centers = hard_case()
    search = ExactSearch(centers)
    ids = search.nearest(rows, l)
    every = exact.dots(rows, centers, *map(np.ravel, np.indices((len(rows), len(centers)))))
    every = every.reshape(len(rows), len(centers))
    np.testing.assert_array_equal(ids, np.argsort(-every, axis=1, kind="stable")[:, :l])
    np.testing.assert_array_equal(
        search.similarities(rows, ids), np.take_along_axis(every, ids, axis=1)
    )
    plain = np.take_along_axis(rows.astype(float) @ centers.astype(float).T, ids, axis=1)
    np.testing.assert_allclose(search.similarities(rows, ids), plain, atol=1e-14)


def test_close_calls_happen_and_a_plain_search_would_fail_them() -> None:
    import faiss

    rows, centers = hard_case()
    _, ids = faiss.knn(rows, centers, 8, metric=faiss.METRIC_INNER_PRODUCT)
    assert (ids != ExactSearch(centers).nearest(rows, 8)).any()


@pytest.mark.parametrize("l", [1, 4])
def test_same_ids_for_any_block_and_threads(l: int) -> None:
    rows, centers = hard_case()
    whole = ExactSearch(centers, threads=1).nearest(rows, l)
    for threads in (1, 2):
        search = ExactSearch(centers, threads=threads)
        for step in (3, 19, 64):
            parts = [search.nearest(rows[i : i + step], l) for i in range(0, len(rows), step)]
            np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_an_engine_with_any_error_below_the_bound_changes_nothing() -> None:
    # What another BLAS or a GPU may do: the worst errors that the bound allows.
    rows, centers = hard_case()
    search = ExactSearch(centers)
    expected = search.nearest(rows, 5)
    rng = np.random.default_rng(0)

    def noisy(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores = queries.astype(float) @ centers.T.astype(float)
        scores += rng.choice([-1, 1], scores.shape) * exact.error_bound(centers.shape[1]) * 0.5
        ids = np.argsort(-scores, axis=1)[:, :k]
        return np.take_along_axis(scores, ids, axis=1).astype(np.float32), ids

    search._search = noisy
    for _ in range(5):
        np.testing.assert_array_equal(search.nearest(rows, 5), expected)


@pytest.mark.gpu
def test_gpu_gives_the_same_ids() -> None:
    import faiss

    if not faiss.get_num_gpus():
        pytest.skip("faiss sees no GPU")
    rows, centers = hard_case()
    found = ExactSearch(centers, device="cuda").nearest(rows, 8)
    np.testing.assert_array_equal(found, ExactSearch(centers).nearest(rows, 8))


def test_error_bound_holds() -> None:
    for d in (2, 17, 768):
        rows, centers = builders.unit_vectors(500, d), builders.unit_vectors(200, d, seed=1)
        error = np.abs(rows @ centers.T - rows.astype(float) @ centers.T.astype(float)).max()
        assert error < exact.error_bound(d) < 2e-7 * d

"""The exact search below cluster and label, held to plain float64 scores."""

from __future__ import annotations

import builders
import numpy as np
import psutil
import pytest
from test_label import unit

from mlcd.neighbours import exact
from mlcd.neighbours.exact import ExactSearch
from mlcd.neighbours.heads import Heads, directions
from mlcd.neighbours.memory import plan_blocks
from mlcd.sizes import parse_size


def hard_case(d: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Rows and centres full of exact ties and of differences below float32's rounding."""
    rng = np.random.default_rng(0)
    base = builders.unit_vectors(40, d, seed=3)
    copies = np.concatenate([base, base[:20], base[:10]])
    close = base[:30].copy()
    for row in close:
        row[rng.integers(d)] = np.nextafter(row[rng.integers(d)], 2, dtype=np.float32)
    centres = np.concatenate([copies, unit(base[:30] + 1e-7), base[5:15]]).astype(np.float32)
    rows = np.concatenate([builders.unit_vectors(300, d, seed=4), base, centres])
    return rows, centres[rng.permutation(len(centres))]


@pytest.mark.parametrize("l", [1, 2, 8, 110])
def test_close_calls_and_ties_are_settled_exactly(l: int) -> None:
    rows, centres = hard_case()
    search = ExactSearch(centres)
    ids = search.nearest(rows, l)
    every = exact.dots(rows, centres, *map(np.ravel, np.indices((len(rows), len(centres)))))
    every = every.reshape(len(rows), len(centres))
    np.testing.assert_array_equal(ids, np.argsort(-every, axis=1, kind="stable")[:, :l])
    np.testing.assert_array_equal(
        search.similarities(rows, ids), np.take_along_axis(every, ids, axis=1)
    )
    plain = np.take_along_axis(rows.astype(float) @ centres.astype(float).T, ids, axis=1)
    np.testing.assert_allclose(search.similarities(rows, ids), plain, atol=1e-14)


def test_close_calls_happen_and_a_plain_search_would_fail_them() -> None:
    import faiss

    rows, centres = hard_case()
    _, ids = faiss.knn(rows, centres, 8, metric=faiss.METRIC_INNER_PRODUCT)
    assert (ids != ExactSearch(centres).nearest(rows, 8)).any()


@pytest.mark.parametrize("l", [1, 4])
def test_same_ids_for_any_block_and_threads(l: int) -> None:
    rows, centres = hard_case()
    whole = ExactSearch(centres, threads=1).nearest(rows, l)
    for threads in (1, 2):
        search = ExactSearch(centres, threads=threads)
        for step in (3, 19, 64):
            parts = [search.nearest(rows[i : i + step], l) for i in range(0, len(rows), step)]
            np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_an_engine_with_any_error_below_the_bound_changes_nothing() -> None:
    # What another BLAS or a GPU may do: the worst errors that the bound allows.
    rows, centres = hard_case()
    search = ExactSearch(centres)
    expected = search.nearest(rows, 5)
    rng = np.random.default_rng(0)

    def noisy(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores = queries.astype(float) @ centres.T.astype(float)
        scores += rng.choice([-1, 1], scores.shape) * exact.error_bound(centres.shape[1]) * 0.5
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
    rows, centres = hard_case()
    found = ExactSearch(centres, device="cuda").nearest(rows, 8)
    np.testing.assert_array_equal(found, ExactSearch(centres).nearest(rows, 8))


def test_error_bound_holds() -> None:
    for d in (2, 17, 768):
        rows, centres = builders.unit_vectors(500, d), builders.unit_vectors(200, d, seed=1)
        error = np.abs(rows @ centres.T - rows.astype(float) @ centres.T.astype(float)).max()
        assert error < exact.error_bound(d) < 2e-7 * d


def test_sizes_are_read() -> None:
    from mlcd.errors import UserError

    assert [parse_size(text) for text in ("1GiB", "500MB", "1.5 gb", "8000", "2K")] == [
        1 << 30, 500_000_000, 1_500_000_000, 8000, 2000,
    ]  # fmt: skip
    for text in ("", "GiB", "-1GB", "0", "1XB", "1 2"):
        with pytest.raises(UserError, match="is no size"):
            parse_size(text)


def test_blocks_follow_the_limit() -> None:
    used = psutil.Process().memory_info().rss
    small, large = (plan_blocks(used + (mib << 20), 10**7, 512, 8, 0) for mib in (200, 300))
    assert 256 <= small.rows < large.rows < 32768
    assert not small.keep
    assert plan_blocks(used + (1150 << 20), 10**7, 512, 8, 0).rows == 32768
    assert plan_blocks(used + (4 << 30), 10**5, 512, 8, 0).keep


def planted(
    k: int, n: int = 1500, d: int = 64, noise: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows around `k` centres, and those centres with some copies among them."""
    rng = np.random.default_rng(5)
    centres = unit(rng.standard_normal((k, d)))
    centres[k // 2 : k // 2 + 20] = centres[:20]
    rows = unit(noise * centres[rng.integers(0, k, n)] + unit(rng.standard_normal((n, d))))
    return rows.astype(np.float32), centres.astype(np.float32)


@pytest.mark.parametrize("noise", [0.5, 3.0])
@pytest.mark.parametrize("l", [1, 4])
def test_pruned_search_equals_the_full_one(l: int, noise: float) -> None:
    rows, centres = planted(1200, noise=noise)
    full = ExactSearch(centres, prune=False).nearest(rows, l)
    pruned = ExactSearch(centres)
    np.testing.assert_array_equal(pruned.nearest(rows, l), full)
    basis = directions(centres)
    for dims in (4, 16, 63):
        heads = Heads(centres, basis, dims, exact.cpu_search)
        ids, certain = pruned._nearest_by_heads(heads, rows, l)
        np.testing.assert_array_equal(ids[certain], full[certain])
    if l == 1 and noise == 3.0:
        assert pruned._heads is not None
        assert pruned._nearest_by_heads(pruned._heads, rows, l)[1].mean() > 0.5


def test_bounds_of_heads_hold() -> None:
    rows, centres = planted(1100)
    true = rows.astype(float) @ centres.T.astype(float)
    for dims in (1, 8, 40):
        heads = Heads(centres, directions(centres), dims, exact.cpu_search)
        bounds, ids = heads.search(rows, 20)
        assert (bounds + heads.margin >= np.take_along_axis(true, ids, axis=1)).all()
        # What is not returned has a lower bound than all that is.
        others = true.copy()
        np.put_along_axis(others, ids, -2, axis=1)
        assert (others.max(axis=1) <= bounds[:, -1] + heads.margin).all()

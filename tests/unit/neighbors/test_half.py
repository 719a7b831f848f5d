"""The search by products of half precision, held to the exact one on rows made to fail it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.builders import unit, unit_vectors
from helpers.search_cases import hard_case
from mlcd.neighbors import half, ordered_sums
from mlcd.neighbors.exact import ExactSearch, dots
from mlcd.neighbors.half import HalfSearch, rounded

TYPES = [torch.float16, torch.bfloat16]
CPU = torch.device("cpu")


def plain(rows: np.ndarray, centers: np.ndarray, l: int) -> np.ndarray:
    """Return the nearest by the scores of all pairs."""
    every = dots(rows, centers, *map(np.ravel, np.indices((len(rows), len(centers)))))
    return np.argsort(-every.reshape(len(rows), -1), axis=1, kind="stable")[:, :l]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("l", [1, 2, 8, 110])
def test_close_calls_and_ties_are_settled_exactly(dtype: torch.dtype, l: int) -> None:
    rows, centers = hard_case()
    search = HalfSearch(centers, CPU, dtype)
    ids = search.nearest(rows, l)
    np.testing.assert_array_equal(ids, plain(rows, centers, l))
    expected = ExactSearch(centers).similarities(rows, ids)
    np.testing.assert_array_equal(search.similarities(rows, ids), expected)


def awkward(d: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Rows and centers with what half precision cannot hold."""
    rng = np.random.default_rng(5)
    base = unit_vectors(60, d, seed=6)
    tiny = base.copy()
    tiny[:, 1:] *= 1e-6  # subnormal in float16
    steep = base * 10.0 ** rng.uniform(-9, 0, base.shape)
    nearly = base[:20] + rng.uniform(-3e-4, 3e-4, (20, d))  # one rounding of float16 apart
    opposite = -base[:10]
    axes = np.eye(d)
    centers = unit(np.concatenate([base, tiny, steep, nearly, opposite, axes])).astype(np.float32)
    least = np.full((1, d), 1e-45, np.float32)
    rows = np.concatenate([centers, np.zeros((2, d)), least, unit(base[::-1] + base)])
    return rows.astype(np.float32), centers


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("l", [1, 5])
def test_rows_that_half_precision_cannot_hold(dtype: torch.dtype, l: int) -> None:
    rows, centers = awkward()
    found = HalfSearch(centers, CPU, dtype).nearest(rows, l)
    np.testing.assert_array_equal(found, plain(rows, centers, l))


@pytest.mark.parametrize("k", [1, 31, 33, 64, 300])
def test_any_number_of_centers_in_tiles_and_blocks(monkeypatch, k: int) -> None:
    # Tiles, the last one short; blocks of rows; few pairs at once, one row with more.
    for name, value in (("_CPU_CENTERS", 64), ("_CPU_ROWS", 16), ("_PAIRS", 3), ("_GATHERED", 99)):
        monkeypatch.setattr(half, name, value)
    centers, rows = unit_vectors(k, 8, seed=1), unit_vectors(50, 8, seed=2)
    # All products negative: what pads a tile must not win.
    rows[:5] = -centers.mean(axis=0)
    centers[k // 2 :] = centers[: k - k // 2]
    for l in sorted({1, min(3, k), k}):
        found = HalfSearch(centers, CPU, torch.float16).nearest(rows, l)
        np.testing.assert_array_equal(found, plain(rows, centers, l))


@pytest.mark.parametrize("dtype", TYPES)
def test_products_with_any_error_below_the_bound_change_nothing(
    monkeypatch, dtype: torch.dtype
) -> None:
    rows, centers = hard_case()
    expected = plain(rows, centers, 4)
    search = HalfSearch(centers, CPU, dtype)
    true = half._multiply
    # The part of the bound that the sum may take, at its worst and of either sign.
    worst = half.accumulation_error(centers.shape[1])
    noise = torch.Generator().manual_seed(0)

    def noisy(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        product = true(left, right)
        sign = torch.randint(0, 2, product.shape, generator=noise) * 2.0 - 1
        return product + 0.98 * worst * sign

    monkeypatch.setattr(half, "_multiply", noisy)
    for _ in range(3):
        np.testing.assert_array_equal(search.nearest(rows, 4), expected)


def tensor_core(left: np.ndarray, right: np.ndarray, block: int) -> np.ndarray:
    """Return products [n, k] of halves as tensor cores add them up, the coarsest way known.

    `block` products and the sum so far are aligned to the largest; bits below its 24th are cut off.
    """
    out = np.zeros((len(left), len(right)))
    for start in range(0, left.shape[1], block):
        part = slice(start, start + block)
        terms = left[:, None, part].astype(float) * right[None, :, part].astype(float)
        terms = np.concatenate([out[:, :, None], terms], axis=2)
        unit_ = np.exp2(np.frexp(np.abs(terms).max(axis=2))[1] - 24.0)[:, :, None]
        sums = (np.trunc(terms / unit_) * unit_).sum(axis=2)
        last = np.exp2(np.frexp(sums)[1] - 24.0)
        out = np.trunc(sums / last) * last
    return out


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("block", [4, 16])
def test_bound_holds_for_sums_that_cut_off(dtype: torch.dtype, block: int) -> None:
    some, centers = awkward(64)
    one_sign = np.abs(unit_vectors(20, 64, seed=8))
    rows = np.concatenate([some[::7], one_sign])
    centers = np.concatenate([centers[::9], one_sign])
    search = HalfSearch(centers, CPU, dtype)
    halves = rounded(torch.from_numpy(rows), dtype)
    mine = rounded(torch.from_numpy(centers), dtype).rows
    got = tensor_core(halves.rows.float().numpy(), mine.float().numpy(), block)
    error = np.abs(got - rows.astype(float) @ centers.T.astype(float))
    assert (error <= search.error(halves).numpy()[:, None]).all()
    # It is not so wide that it would say nothing.
    widest = error.max(axis=1)
    assert (search.error(halves).numpy() < 40 * widest.max()).all()


def test_products_that_err_more_are_refused(monkeypatch) -> None:
    from mlcd.utils.errors import UserError

    true = half._multiply
    monkeypatch.setattr(half, "_multiply", lambda left, right: true(left, right) * 1.01)
    with pytest.raises(UserError, match="--products float32"):
        HalfSearch(unit_vectors(50, 16), CPU, torch.float16)


def test_sums_have_numpys_bits() -> None:
    rng = np.random.default_rng(0)
    for n in (*range(1, 40), 127, 128, 129, 136, 255, 384, 513, 768, 1000, 1024, 1280, 5000, 9001):
        x = rng.standard_normal((5, n)) * 10.0 ** rng.integers(-8, 8, (5, n))
        sums = ordered_sums.pairwise_sum(torch.from_numpy(x)).numpy()
        np.testing.assert_array_equal(sums, x.sum(axis=1))

"""Products of small integers, and what they need."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from helpers.bounds_cases import isotropic, spiky
from mlcd.neighbors import integers
from mlcd.neighbors.bounds import ROWS
from mlcd.neighbors.choice import Choice, Spent
from mlcd.neighbors.integers import IntegerBounds

#: What CPUs without VNNI do, on any CPU: oneDNN's own switch.
_CHECK = """
import sys
import numpy as np
from mlcd.neighbors import integers
from mlcd.neighbors.integers import IntegerBounds
largest = integers.usable(1100, 100)
rng = np.random.default_rng(0)
unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
rows, centers = unit(rng.standard_normal((300, 100))), unit(rng.standard_normal((1100, 100)))
bounds = IntegerBounds(centers, largest, mixed=False)
prepared = bounds.prepare(rows)
found = bounds.scores(prepared, 0, 1100)
assert (found == prepared.integers[:300].astype(int) @ bounds.centers.astype(int).T).all()
print(largest)
"""


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE", "SSE41"])
def test_products_are_exact_with_any_instructions(
    instructions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", instructions)
    done = subprocess.run(
        [sys.executable, "-c", _CHECK], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() in ("63", "127")


def test_products_that_overflow_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = integers._plain

    def cut(rows: np.ndarray, centers: np.ndarray) -> np.ndarray:
        # Pairs of products are added in 16 bits, as CPUs without VNNI do.
        n, d = rows.shape
        left = rows.reshape(n, d // 2, 2).astype(np.int32) + 128
        right = centers.reshape(len(centers), d // 2, 2).astype(np.int32)
        pairs = np.einsum("njp,kjp->njk", left, right)
        cut_off = np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=1)
        return (cut_off - 128 * centers.astype(np.int32).sum(axis=1)).astype(np.int32)

    monkeypatch.setattr(integers, "_product", cut)
    monkeypatch.setattr(integers, "_largest", {})
    assert integers.usable(200, 64, 16) == 63
    monkeypatch.setattr(integers, "_product", lambda rows, centers: plain(rows, centers) + 1)
    monkeypatch.setattr(integers, "_largest", {})
    assert integers.usable(200, 64, 16) == 0


def test_a_shape_whose_products_are_wrong_is_multiplied_plainly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, centers = isotropic()
    bounds = IntegerBounds(centers, 127, mixed=False)
    prepared = bounds.prepare(rows)
    expected = integers._plain(prepared.integers[: len(rows)], bounds.centers)
    monkeypatch.setattr(integers, "_product", lambda rows, centers: np.zeros((ROWS, 1100)))
    monkeypatch.setattr(integers, "usable", lambda k, d, rows: 63)
    np.testing.assert_array_equal(bounds.scores(prepared, 0, 1100), expected)


def test_mixing_serves_rows_with_few_large_entries() -> None:
    assert not integers.mixing_pays(isotropic()[1], isotropic()[0])
    assert integers.mixing_pays(spiky()[1], spiky()[0])


def test_integers_are_chosen_where_they_pay() -> None:
    rows, centers = isotropic()
    asked = []

    def chosen(allow: bool, count: float) -> bool:
        def spend(bounds) -> Spent:
            asked.append(type(bounds))
            return Spent(2, 0) if isinstance(bounds, IntegerBounds) else Spent(2, 1)

        return isinstance(
            Choice(allow).choose(centers, rows[:256], spend, lambda: count), IntegerBounds
        )

    assert not chosen(False, 1e12)
    assert IntegerBounds not in asked
    chosen(True, 1e12)
    assert IntegerBounds in asked

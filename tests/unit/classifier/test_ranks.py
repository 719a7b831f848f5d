"""The sharded classifier on 2, 3 and 4 gloo ranks against the one-process function."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers import classifier_ranks as ranks

WORLDS = (2, 3, 4)


@pytest.fixture(scope="module")
def single() -> dict[str, Any]:
    """The same work without a process group."""
    torch.set_num_threads(1)
    head = ranks.classifier()
    return {
        "training": ranks.training(0, 1),
        "saturation": ranks.saturation(0, 1),
        "sampled": [head.sampled_rows(step).tolist() for step in range(3)],
        "random_rows": head.weight.detach(),
    }


@pytest.fixture(scope="module", params=WORLDS)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return ranks.spawn(request.param, tmp_path_factory.mktemp("ranks"))


def test_loss_and_gradients_equal_the_one_process_function(results: list[dict]) -> None:
    for index, setting in enumerate(ranks.SETTINGS):
        found = [result["settings"][index] for result in results]
        assert len({errors["value"] for errors in found}) == 1, setting
        for errors in found:
            assert errors["loss"] < 1e-6, (setting, errors)
            assert errors["embedding"] < 1e-5, (setting, errors)
            assert errors["center"] < 1e-5, (setting, errors)


@pytest.mark.parametrize("case", ["few", "no reduce-scatter"])
def test_ranks_without_rows_and_backends_without_reduce_scatter(
    results: list[dict], case: str
) -> None:
    for result in results:
        errors = result[case]
        assert errors["loss"] < 1e-6
        assert max(errors["embedding"], errors["center"]) < 1e-5


def test_bfloat16_products_stay_near(results: list[dict]) -> None:
    for result in results:
        assert result["halves"]["loss"] < 2e-3
        assert result["halves"]["embedding"] < 0.02
        assert result["halves"]["center"] < 0.02


def test_the_same_negatives_at_any_world_size(results: list[dict], single: dict) -> None:
    for step, expected in enumerate(single["sampled"]):
        assert len(expected) == round(0.1 * ranks.NUM_CLASSES)
        union = [row + result["start"] for result in results for row in result["sampled"][step]]
        assert union == expected


def test_training_does_not_depend_on_the_world_size(results: list[dict], single: dict) -> None:
    """Accumulation, clipping over shards, optimizer state and statistics."""
    one = single["training"]
    for result in results:
        assert result["training"]["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert result["training"]["norms"] == pytest.approx(one["norms"], rel=1e-5)
        for found, expected in zip(result["training"]["terms"], one["terms"], strict=True):
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for name in ("weight", "exp_avg", "exp_avg_sq", "row_step", "embedding"):
        whole = torch.cat([result["training"][name] for result in results])
        torch.testing.assert_close(whole, one[name], rtol=1e-3, atol=1e-5, msg=lambda m: name + m)  # noqa: B023


@pytest.mark.parametrize(("precision", "p"), [("float32", 4), ("bfloat16", 2)])
def test_a_step_sends_the_bytes_of_the_formula(results: list[dict], precision: str, p: int) -> None:
    """The table "Bytes per step" of learning-core.md, from what each collective is handed.

    In a ring, a rank sends (W − 1) times its part in an all-gather, (W − 1) / W of the whole in a
    reduce-scatter, and twice that in an all-reduce.
    """
    world, d, labels = len(results), ranks.DIM, ranks.LABELS
    batch = ranks.BATCH // world
    for result in results:
        handed = result["traffic"][precision]
        assert handed["gather"] == [batch * d * p, batch * labels * 8]
        assert handed["scatter_sum"] == [world * batch * d * 4]
        assert handed["add"] == [world * batch * 16 + 32, 8]
        sent = (world - 1) * sum(handed["gather"])
        sent += (world - 1) * (sum(handed["scatter_sum"]) + 2 * sum(handed["add"])) / world
        rows = (world - 1) * batch * (d * (p + 4) + 8 * labels + 32)
        assert sent == pytest.approx(rows + 80 * (world - 1) / world)


def test_positives_do_not_crowd_out_negatives(results: list[dict], single: dict) -> None:
    expected = round(0.25 * ranks.BATCH * ranks.LABELS)
    assert single["saturation"] == expected
    assert sum(result["saturation"] for result in results) == expected


def test_random_centers_do_not_depend_on_the_world_size(results: list[dict], single: dict) -> None:
    assert torch.equal(torch.cat([r["random_rows"] for r in results]), single["random_rows"])

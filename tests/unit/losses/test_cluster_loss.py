"""The public loss against a float64 reference that is written sample by sample."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mlcd.losses import Objective, cluster_loss


def test_mlc_with_one_positive_is_single():
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    center = torch.randn(10, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 10, (6, 3), generator=generator)
    found = []
    for kind, l in (("mlc", 1), ("single", 1), ("single", 3), ("mlcd", 1)):
        rows = embedding.clone().requires_grad_()
        loss = cluster_loss(
            rows, center, labels[:, :l], torch.arange(0, 10, 2),
            kind=kind, scale=16.0, margin=0.3, margin_type="cosface",
        )  # fmt: skip
        loss.backward()
        found.append((loss.item(), rows.grad))
    for loss, gradient in found[1:3]:
        assert loss == pytest.approx(found[0][0], rel=1e-12)
        assert torch.allclose(gradient, found[0][1], atol=1e-12)
    assert found[3][0] != pytest.approx(found[0][0], rel=1e-3)


torch.set_num_threads(1)

KINDS, MARGINS, BLOCKS = ("mlcd", "mlc", "single"), ("cosface", "arcface", "none"), (None, 1, 7)


def positive_logit(cosine: Tensor, scale: float, margin: float, margin_type: str) -> Tensor:
    """One positive's logit; a number."""
    if margin_type == "none":
        return scale * cosine
    if margin_type == "cosface":
        return scale * (cosine - margin)
    if cosine < -math.cos(margin):  # θ + m beyond π: continued as a straight line.
        return scale * (cosine - 1 + math.cos(margin))
    last = math.asin(1e-3)
    if cosine > math.cos(last):  # θ next to 0: the tangent.
        slope = math.sin(last + margin) / math.sin(last)
        return scale * (math.cos(last + margin) + slope * (cosine - math.cos(last)))
    return scale * torch.cos(torch.acos(cosine) + margin)


def reference(
    embedding: Tensor,
    centroid: Tensor,
    labels: Tensor,
    negatives: Tensor | None,
    kind: str,
    scale: float,
    margin: float,
    margin_type: str,
) -> Tensor:
    """The formulas of the paper, in float64, with sets and loops."""
    drawn = set(range(len(centroid)) if negatives is None else negatives.tolist())
    losses = []
    for vector, row in zip(embedding, labels.tolist(), strict=True):
        cosine = F.cosine_similarity(vector[None], centroid, dim=1, eps=0)
        row = [label for label in row if label >= 0]
        own = row[:1] if kind == "single" else sorted(set(row))
        pull = [-positive_logit(cosine[i], scale, margin, margin_type) for i in own]
        push = [scale * cosine[j] for j in sorted(drawn - set(own))]
        zero = 0 * cosine[:1]
        if kind == "mlcd":
            losses.append(
                torch.cat([zero, *(value.view(1) for value in pull)]).logsumexp(0)
                + torch.cat([zero, *(value.view(1) for value in push)]).logsumexp(0)
            )
        else:
            both = [(a + b).view(1) for a in pull for b in push]
            losses.append(torch.cat([zero, *both]).logsumexp(0))
    return torch.stack(losses).mean()


def problem(seed: int = 0, classes: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings, centers, labels with repeats, padding and a row without any; negatives."""
    random = torch.Generator().manual_seed(seed)
    embedding = torch.randn(9, 16, generator=random)
    centroid = 3 * torch.randn(classes, 16, generator=random)
    labels = torch.randint(classes, (9, 4), generator=random)
    labels[0, 1] = labels[0, 0]
    labels[1, 0] = labels[2, 2:] = labels[3] = -1
    return embedding, centroid, labels, torch.randperm(classes, generator=random)[:25]


def gradients(function, embedding, centroid, dtype, *arguments, **settings):
    leaves = [x.detach().to(dtype, copy=True).requires_grad_() for x in (embedding, centroid)]
    loss = function(*leaves, *arguments, **settings)
    loss.backward()
    return loss.detach().double(), *(leaf.grad.double() for leaf in leaves)


def assert_equal_to_reference(arguments, settings, *, gradient=1e-5, loss=1e-6) -> None:
    """float32 within the tolerances; a loss under 1, a tail of exp, is held absolutely."""
    expected = gradients(reference, *arguments[:2], torch.float64, *arguments[2:], **settings)
    for block in BLOCKS:
        found = gradients(
            cluster_loss, *arguments[:2], torch.float32, *arguments[2:], block=block, **settings
        )
        assert all(value.isfinite().all() for value in found)
        context = (settings, block)
        assert abs(found[0] - expected[0]) <= loss * max(float(expected[0]), 1.0), context
        for value, other in zip(found[1:], expected[1:], strict=True):
            assert (value - other).norm() <= gradient * max(float(other.norm()), 1e-3), context


@pytest.mark.parametrize(("kind", "margin_type"), itertools.product(KINDS, MARGINS))
def test_equals_the_reference(kind: str, margin_type: str) -> None:
    embedding, centroid, labels, drawn = problem()
    for scale, negatives in itertools.product((64.0, 256.0), (None, drawn)):
        settings = {"kind": kind, "scale": scale, "margin": 0.3, "margin_type": margin_type}
        assert_equal_to_reference((embedding, centroid, labels, negatives), settings)


def extreme(case: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    embedding, centroid, labels, negatives = problem(seed=1)
    labels = labels.clamp(min=0)
    if case == "on its center":
        return centroid[labels[:, 0]], centroid, labels, negatives
    if case == "opposite its center":
        return -centroid[labels[:, 0]], centroid, labels, negatives
    if case == "all negatives at 1":
        centroid = centroid.clone()
        centroid[20:] = 2 * centroid[20]
        labels = labels % 20
        return centroid[20:21].expand(9, -1).clone(), centroid, labels, None
    if case == "all classes positive":
        return embedding, centroid[:4], torch.arange(4).repeat(9, 1), None
    if case == "no negative":
        return embedding, centroid, labels, negatives[:0]
    if case == "one class":
        return embedding, centroid[:1], torch.zeros_like(labels), None
    if case == "one label":
        return embedding, centroid, labels[:, :1], negatives
    assert case == "no label"
    return embedding, centroid, torch.full_like(labels, -1), negatives


CASES = (
    "on its center", "opposite its center", "all negatives at 1", "all classes positive",
    "no negative", "one class", "one label", "no label",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_inputs(case: str, kind: str) -> None:
    for margin_type, scale in itertools.product(MARGINS, (64.0, 256.0)):
        settings = {"kind": kind, "scale": scale, "margin": 0.3, "margin_type": margin_type}
        tolerance = {}
        if case == "on its center" and margin_type == "arcface":
            # arcface next to θ = 0 is 300 times as steep as a cosine, and so is its rounding error.
            tolerance = {"gradient": 2e-3, "loss": 1e-4}
        elif case == "on its center" and kind != "mlcd":
            # A small difference of two logits near ±scale, each rounded to 6e-8 · scale.
            tolerance = {"loss": 6e-8 * scale}
        assert_equal_to_reference(extreme(case), settings, **tolerance)


@pytest.mark.parametrize(("kind", "margin_type"), itertools.product(KINDS, MARGINS))
@pytest.mark.parametrize("block", BLOCKS)
def test_gradcheck(kind: str, margin_type: str, block: int | None) -> None:
    embedding, centroid, labels, negatives = problem(classes=12)
    embedding, centroid, labels = embedding[:5, :6], centroid[:, :6], labels[:5]
    negatives = negatives[negatives < 12]

    def function(embedding: Tensor, centroid: Tensor) -> Tensor:
        return cluster_loss(
            embedding, centroid, labels, negatives, block=block,
            kind=kind, scale=8.0, margin=0.3, margin_type=margin_type,
        )  # fmt: skip

    leaves = [tensor.double().requires_grad_() for tensor in (embedding, centroid)]
    assert torch.autograd.gradcheck(function, leaves)


def test_eq5_is_eq4_and_two_terms() -> None:
    """(1 + A)(1 + B) = (1 + AB) + A + B."""
    embedding, centroid, labels, _ = problem()
    settings = {"scale": 4.0, "margin": 0.3, "margin_type": "cosface"}
    for vector, row in zip(embedding.double(), labels, strict=True):
        values = {
            kind: cluster_loss(vector[None], centroid.double(), row[None], kind=kind, **settings)
            for kind in ("mlcd", "mlc")
        }
        cosine = F.cosine_similarity(vector[None], centroid.double())
        own = torch.zeros(len(centroid), dtype=torch.bool)
        own[row[row >= 0]] = True
        a, b = (-4 * (cosine[own] - 0.3)).exp().sum(), (4 * cosine[~own]).exp().sum()
        torch.testing.assert_close(values["mlcd"].exp(), values["mlc"].exp() + a + b)


def test_single_is_a_softmax_over_one_positive() -> None:
    embedding, centroid, _, negatives = problem()
    target = torch.arange(30, 39)
    negatives = negatives[negatives < 30]
    found = cluster_loss(
        embedding, centroid, target[:, None], negatives,
        kind="single", scale=16.0, margin=0.2, margin_type="cosface",
    )  # fmt: skip
    cosine = F.normalize(embedding) @ F.normalize(centroid).t()
    positive = cosine.gather(1, target[:, None]) - 0.2
    logits = 16 * torch.cat([positive, cosine[:, negatives]], 1)
    expected = F.cross_entropy(logits, torch.zeros(9, dtype=torch.long))
    torch.testing.assert_close(found, expected)


def test_margin_only_on_positives() -> None:
    embedding, centroid, labels, negatives = problem()
    settings = {"kind": "mlcd", "scale": 16.0, "margin_type": "cosface"}

    def loss(margin: float, chosen: Tensor, rows: Tensor) -> Tensor:
        return cluster_loss(embedding, centroid, rows, chosen, margin=margin, **settings)

    nothing = torch.full_like(labels, -1)
    assert torch.equal(loss(0.3, negatives, nothing), loss(0.0, negatives, nothing))
    with_negatives = loss(0.3, negatives, labels) - loss(0.0, negatives, labels)
    without = loss(0.3, negatives[:0], labels) - loss(0.0, negatives[:0], labels)
    assert without > 0.1
    torch.testing.assert_close(with_negatives, without, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", BLOCKS)
def test_order_does_not_matter(block: int | None) -> None:
    embedding, centroid, labels, negatives = problem()
    settings = {"kind": "mlcd", "scale": 64.0, "margin": 0.3, "margin_type": "cosface"}
    expected = cluster_loss(embedding, centroid, labels, negatives, **settings)
    classes, samples = torch.randperm(40), torch.randperm(9)
    place = classes.argsort()
    moved = place[labels.clamp(min=0)].where(labels >= 0, -1)[samples][:, torch.randperm(4)]
    found = cluster_loss(
        embedding[samples], centroid[classes], moved, place[negatives], block=block, **settings
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_a_repeated_negative_counts_once() -> None:
    embedding, centroid, labels, negatives = problem()
    settings = {"kind": "mlcd", "scale": 64.0, "margin": 0.3, "margin_type": "cosface"}
    once = cluster_loss(embedding, centroid, labels, negatives, **settings)
    twice = cluster_loss(embedding, centroid, labels, negatives.repeat(2), **settings)
    assert torch.equal(once, twice)


def test_arcface_is_the_angle_and_falls_everywhere() -> None:
    objective = Objective("mlcd", 1.0, 0.3, "arcface")
    inner = torch.linspace(-math.cos(0.3), 0.999, 99, dtype=torch.float64)
    torch.testing.assert_close(
        objective.positive_logit(inner), torch.cos(torch.acos(inner) + 0.3), rtol=0, atol=1e-12
    )
    cosine = torch.linspace(-1, 1, 20001, dtype=torch.float64).requires_grad_()
    value = objective.positive_logit(cosine)
    (slope,) = torch.autograd.grad(value.sum(), cosine)
    assert slope.isfinite().all() and (slope >= -1e-9).all()
    assert (value.diff() > 0).all() and value.diff().max() < 0.01  # Continuous and rising in cos θ.


@pytest.mark.parametrize("block", BLOCKS)
def test_a_zero_vector_is_harmless(block: int | None) -> None:
    embedding, centroid, labels, negatives = problem()
    embedding[0], centroid[labels[4, 0]] = 0, 0
    settings = {"kind": "mlcd", "scale": 64.0, "margin": 0.3, "margin_type": "arcface"}
    _, first, second = gradients(
        cluster_loss, embedding, centroid, torch.float32, labels, negatives, block=block, **settings
    )
    assert first.isfinite().all() and second.isfinite().all()
    assert not first[0].any() and first[1].any()


@pytest.mark.parametrize("block", BLOCKS)
def test_half_inputs_and_autocast_keep_float32(block: int | None) -> None:
    embedding, centroid, labels, negatives = problem()
    settings = {"kind": "mlcd", "scale": 64.0, "margin": 0.3, "margin_type": "cosface"}
    expected = cluster_loss(embedding.bfloat16().float(), centroid, labels, negatives, **settings)
    with torch.autocast("cpu", torch.bfloat16):
        found = cluster_loss(
            embedding.bfloat16(), centroid, labels, negatives, block=block, **settings
        )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "triplet"}, "kind"),
        ({"margin_type": "sphere"}, "margin_type"),
        ({"scale": 0.0}, "scale"),
        ({"margin": -0.1}, "margin"),
        ({"margin": 4.0, "margin_type": "arcface"}, "radians"),
        ({"block": 0}, "block"),
    ],
)
def test_settings_that_do_not_fit(changes: dict, message: str) -> None:
    settings = {"kind": "mlcd", "scale": 64.0, "margin": 0.3, "margin_type": "cosface", **changes}
    with pytest.raises(ValueError, match=message):
        cluster_loss(*problem(), **settings)


def test_inputs_that_do_not_fit() -> None:
    settings = {"kind": "mlcd", "scale": 64.0, "margin": 0.3, "margin_type": "cosface"}
    embedding, centroid, labels, negatives = problem()
    for wrong in (labels + 40, labels - 1, labels.float(), labels[:, 0], labels[:3]):
        with pytest.raises(ValueError, match="labels"):
            cluster_loss(embedding, centroid, wrong, negatives, **settings)
    with pytest.raises(ValueError, match="negatives"):
        cluster_loss(embedding, centroid, labels, negatives + 40, **settings)
    with pytest.raises(ValueError, match=r"\[B, d\]"):
        cluster_loss(embedding[:, :3], centroid, labels, negatives, **settings)

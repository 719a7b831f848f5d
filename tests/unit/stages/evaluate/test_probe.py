"""The linear probe and its search of C, held to scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier

from helpers.evaluate_runs import planted
from mlcd.stages.evaluate import measures, probe


def objective(weight, bias, x, y, c) -> float:
    """scikit-learn's objective over C n, in float64."""
    logits = x.astype(np.float64) @ weight + bias
    top = logits.max(1, keepdims=True)
    loss = np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[np.arange(len(y)), y]
    return loss.mean() + (weight**2).sum() / (2 * c * len(y))


@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0])
def test_the_probe_finds_scikit_learns_minimum(c):
    x, y = planted(400, 30, 6)
    rows = probe.Scale.of(torch.from_numpy(x))(torch.from_numpy(x))
    ours = probe.fit(probe.Rows(rows), torch.from_numpy(y), c, 1000)
    theirs = LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(rows.double().numpy(), y)
    found = objective(ours.weight.double().numpy(), ours.bias.double().numpy(), rows.numpy(), y, c)
    best = objective(theirs.coef_.T, theirs.intercept_, rows.numpy(), y, c)
    assert abs(found - best) < 1e-4
    assert ours.loss == pytest.approx(found, abs=1e-5)
    agree = ours.logits(rows).argmax(1).numpy() == theirs.predict(rows.double().numpy())
    assert agree.mean() >= 0.995


def test_the_tag_probe_is_one_against_rest():
    x, _ = planted(300, 20, 4)
    rng = np.random.default_rng(3)
    tags = (x @ rng.standard_normal((20, 5)) + rng.standard_normal((300, 5)) > 1.5).astype(int)
    rows = probe.Scale.of(torch.from_numpy(x))(torch.from_numpy(x))
    ours = probe.fit(probe.Rows(rows), torch.from_numpy(tags).float(), 0.1, 1000)
    theirs = OneVsRestClassifier(LogisticRegression(C=0.1, max_iter=5000, tol=1e-8))
    expected = theirs.fit(rows.double().numpy(), tags).decision_function(rows.double().numpy())
    assert np.abs(ours.logits(rows).numpy() - expected).max() < 0.02
    score = measures.mean_average_precision(ours.logits(rows).numpy(), tags.astype(bool))
    each = [average_precision_score(tags[:, tag], expected[:, tag]) for tag in range(5)]
    assert score == pytest.approx(np.mean(each), abs=1e-3)


def test_a_start_saves_iterations_and_leaves_the_minimum():
    x, y = planted(300, 20, 5)
    rows = probe.Rows(probe.Scale.of(torch.from_numpy(x))(torch.from_numpy(x)))
    cold = probe.fit(rows, torch.from_numpy(y), 1.0, 1000)
    warm = probe.fit(rows, torch.from_numpy(y), 1.0, 1000, start=cold)
    assert warm.iterations < cold.iterations / 2
    assert warm.loss == pytest.approx(cold.loss, abs=1e-5)
    assert cold.excess <= probe.TOLERANCE
    cut = probe.fit(rows, torch.from_numpy(y), 1.0, 2)
    assert cut.excess > 10 * probe.TOLERANCE


def test_columns_of_zeros_and_few_rows_leave_the_fit():
    x, y = planted(40, 60, 3)
    x = torch.from_numpy(x - x.mean(0))
    wide = torch.zeros(40, 200)
    wide[:, ::4][:, :30], wide[:, 1::4][:, :30] = x[:, :30], x[:, 30:]
    narrow = probe.fit(probe.Rows(x), torch.from_numpy(y), 1.0, 1000)
    found = probe.fit(probe.Rows(wide), torch.from_numpy(y), 1.0, 1000)
    assert found.weight.shape == (200, 3)
    assert (found.weight[2::4] == 0).all()
    assert found.loss == pytest.approx(narrow.loss, abs=1e-5)
    assert torch.allclose(found.logits(wide), narrow.logits(x), rtol=0.01, atol=0.05)


def test_c_is_found_by_clips_search_on_the_rows_held_back():
    x, y = planted(400, 40, 8)
    x = x / x.std()
    # Some labels are wrong: no C separates the rows, so the whole range is searched.
    y[::40] = (y[::40] + 1) % 8
    rows, targets = torch.from_numpy(x), torch.from_numpy(y)
    held = torch.from_numpy(probe.validation_rows(keys(400), 0.25, 0, y))
    chosen = probe.choose(rows, targets, held, (1e-4, 1e2), 500, of_fit(measures.accuracy))
    tried = np.array(list(chosen.scores))
    # Two decades apart over the range, then around the best down to an eighth of a decade.
    assert {1e-4, 1e-2, 1.0, 100.0} <= set(tried)
    near = np.sort(np.abs(np.log10(tried / chosen.c)))
    assert near[1] == pytest.approx(1 / 8, abs=1e-5)
    assert len(tried) <= 4 + 2 * 4
    assert chosen.scores[chosen.c] == max(chosen.scores.values())
    for c in (1e-2, chosen.c, 100.0):
        theirs = LogisticRegression(C=c, max_iter=5000, tol=1e-8)
        theirs.fit(x[~held.numpy()], y[~held.numpy()])
        by_hand = theirs.score(x[held.numpy()], y[held.numpy()])
        assert chosen.scores[c] == pytest.approx(by_hand, abs=0.011)  # one image of a hundred


@pytest.mark.parametrize("tags", [False, True])
def test_no_c_is_tried_beyond_the_first_that_separates_the_rows(tags):
    """There rounding decides where a fit ends, and with it which C seems best on a few rows."""
    x, y = planted(300, 200, 6)
    rows, classes = torch.from_numpy(x / x.std()), torch.from_numpy(y)
    targets = torch.nn.functional.one_hot(classes).float() if tags else classes
    held = torch.from_numpy(probe.validation_rows(keys(300), 0.3, 0, y))

    def score(found, rows, targets):
        right = found.logits(rows).argmax(1) == classes[held]
        return float(right.double().mean())

    found = probe.choose(rows, targets, held, (1e-6, 1e6), 500, score)
    fitted = probe.Rows(rows).where(~held)
    separated = {
        c: probe.separates(probe.fit(fitted, targets[~held], c, 500), fitted, targets[~held])
        for c in found.scores
    }
    first = min(c for c in (1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6) if separated.get(c))
    assert max(found.scores) == first < 1e6
    # Numbers that differ by rounding, as those of other threads do, choose the same.
    noise = 1 + 1e-6 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
    assert probe.choose(rows * noise, targets, held, (1e-6, 1e6), 500, score).c == found.c
    # With one label that is wrong nothing separates, and the whole range is searched.
    twice = torch.cat([rows, rows[~held][:1]])
    wrong = torch.cat([targets, targets[held.logical_not().nonzero()[:1, 0]].roll(1, 0)])
    if tags:
        wrong[-1] = 1 - wrong[-1]
    else:
        wrong[-1] = (wrong[-1] + 1) % 6
    whole = probe.choose(
        twice, wrong, torch.cat([held, torch.tensor([False])]), (1e-6, 1e6), 500, score
    )
    assert max(whole.scores) == 1e6


def test_the_search_follows_the_peak_and_says_when_it_lies_at_an_end(caplog, monkeypatch):
    rows, targets = torch.randn(40, 3), torch.arange(40) % 2
    held = torch.arange(40) % 4 == 0
    monkeypatch.setattr(probe, "separates", lambda *_: False)

    def peak_at(best: float):
        monkeypatch.setattr(
            probe, "fit", lambda rows, targets, c, *rest: probe.Fit(rows.axes, rows.axes, c, 1)
        )
        by_c = lambda fit, rows, targets: -abs(np.log10(fit.loss) - best)  # noqa: E731
        return probe.choose(rows, targets, held, (1e-6, 1e6), 9, by_c)

    for best in (-6.0, -3.37, -1.0, 0.26, 5.9, 6.0):
        caplog.clear()
        found = peak_at(best)
        assert abs(np.log10(found.c) - best) <= 1 / 16 + 1e-6
        assert ("at this end of the range" in caplog.text) == (abs(best) == 6)
        assert len(found.scores) <= 15


@pytest.mark.parametrize("classes", [4, 12])
def test_fits_that_end_early_leave_the_choice_of_c(classes, monkeypatch):
    x, y = planted(600, 40, classes)
    # Some labels are wrong, as in all data: no C is right for all rows.
    wrong = np.random.default_rng(1).random(600) < 0.3
    y[wrong] = np.random.default_rng(2).integers(0, classes, wrong.sum())
    rows, targets = torch.from_numpy(x / x.std()), torch.from_numpy(y)
    held = torch.from_numpy(probe.validation_rows(keys(600), 0.25, 0, y))
    steps, real = [0], probe.fit

    def counted(*arguments):
        found = real(*arguments)
        steps[-1] += found.iterations
        return found

    monkeypatch.setattr(probe, "fit", counted)
    fast = probe.choose(rows, targets, held, (1e-4, 1e6), 1000, of_fit(measures.accuracy))
    steps.append(0)
    monkeypatch.setattr(probe._Settled, "__call__", lambda *_: False)
    monkeypatch.setattr(probe, "TOLERANCE", 1e-8)
    whole = probe.choose(rows, targets, held, (1e-4, 1e6), 1000, of_fit(measures.accuracy))
    assert fast.c == whole.c
    assert fast.scores[fast.c] == whole.scores[whole.c]
    assert steps[0] < 0.6 * steps[1]


def test_a_fit_ends_early_only_where_its_score_stays_below_the_best():
    def ends(*scores: float) -> list[bool]:
        given = iter(scores)
        watch = probe._Settled(lambda fit: next(given), 0.8)
        return [watch(probe.Fit(torch.zeros(1, 1), torch.zeros(1), 0.0, 0)) for _ in scores]

    assert ends(0.5, 0.5, 0.5) == [False, False, True]
    assert ends(0.8, 0.8, 0.8, 0.8) == [False] * 4
    assert ends(0.4, 0.5, 0.6, 0.7, 0.79, 0.85, 0.9) == [False] * 7
    assert ends(0.7, 0.75, 0.72, 0.74, 0.74, 0.73) == [False] * 5 + [True]


def keys(count: int) -> list[bytes]:
    return [b"key %d" % index for index in range(count)]


def of_fit(measure):
    """A measure of logits as one of a fit."""
    return lambda fit, rows, targets: measure(fit.logits(rows), targets)


def test_validation_keeps_groups_together_and_leaves_every_class_something_to_fit():
    rng = np.random.default_rng(0)
    group, label = rng.integers(0, 60, 200), rng.integers(0, 5, 200)
    group[:3], label[:3] = [900, 901, 901], [7, 8, 8]  # classes of one group
    names = [b"%d" % number for number in group]
    for seed in range(40):
        held = probe.validation_rows(names, 0.3, seed, label)
        assert not set(group[held]) & set(group[~held])
        assert set(label[~held]) == set(label)
        assert 0.1 < held.mean() < 0.5
    one, other = (probe.validation_rows(names, 0.3, seed, label) for seed in (1, 2))
    assert not np.array_equal(one, other)
    # By name, not by place: another order of the rows gives every row the same side.
    order = rng.permutation(200)
    again = probe.validation_rows([names[row] for row in order], 0.3, 1, label[order])
    assert np.array_equal(again, one[order])


def test_rows_in_blocks_give_the_same_fit(monkeypatch):
    x, y = planted(300, 20, 5)
    rows = probe.Rows(probe.Scale.of(torch.from_numpy(x))(torch.from_numpy(x)))
    tags = torch.nn.functional.one_hot(torch.from_numpy(y)).float()
    whole = [probe.fit(rows, targets, 1.0, 1000) for targets in (torch.from_numpy(y), tags)]
    monkeypatch.setitem(probe._BLOCK, "cpu", 25 * 7)
    for targets, found in zip((torch.from_numpy(y), tags), whole, strict=True):
        blocked = probe.fit(rows, targets, 1.0, 1000)
        assert blocked.loss == pytest.approx(found.loss, abs=1e-5)
        assert torch.allclose(blocked.logits(rows.along), found.logits(rows.along), atol=0.05)

"""Colors of charts and pages: contrast in both schemes, and what color-blind readers see."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from mlcd.utils.palette import COLORS, MODELS, contrast, linear

#: Colors of words, and what these stand on; of lines and bars; and of what only decorates.
WORDS, GROUNDS = ("ink", "muted", "link"), ("page", "panel", "alarm")
MARKS = ("blue", "sky", "orange", "red", "green", "purple", "olive", "gray")
DECORATION = ("line", "grid")
#: Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as dichromats see it.
BLIND = {
    "nobody": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
}  # fmt: skip
#: Colors that stand side by side in one panel, as names.
TOGETHER = [
    ("ink", "blue", "red"), ("blue", "red", "purple"), ("blue", "orange"), ("sky", "blue"),
    ("blue", "green", "orange"), ("gray", "blue"), tuple(MODELS.values()),
]  # fmt: skip


def test_each_color_has_a_use_that_says_how_far_it_must_stand_out():
    assert sorted((*WORDS, *GROUNDS, *MARKS, *DECORATION)) == sorted(COLORS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_marks_stand_out_from_their_ground(scheme):
    def of(name: str) -> str:
        return getattr(COLORS[name], scheme)

    for name in WORDS:
        for ground in GROUNDS:
            assert contrast(of(name), of(ground)) >= 4.5, (name, ground)
    for name in MARKS:
        assert contrast(of(name), of("page")) >= 3, name


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def lab(color: str, seen: np.ndarray) -> np.ndarray:
    """Return CIE L*a*b* (D65) of a color as someone sees it."""
    rgb = np.clip(np.asarray(seen) @ linear(color), 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.maximum(to_xyz @ rgb / [0.9505, 1, 1.089], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("who", BLIND)
@pytest.mark.parametrize("names", TOGETHER, ids=" ".join)
def test_colors_of_one_panel_are_told_apart(scheme, who, names):
    for one, other in combinations(names, 2):
        seen = [lab(getattr(COLORS[name], scheme), BLIND[who]) for name in (one, other)]
        assert np.linalg.norm(seen[0] - seen[1]) >= 15, (one, other)

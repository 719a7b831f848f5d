"""The paper's figures beside the pairs of an ablation."""

from __future__ import annotations

from mlcd.config import Cell
from mlcd.stages.ablate.published_pairs import published


def test_the_papers_figures_go_with_the_right_pairs():
    eight, one = Cell("mlcd", 8, 0.1, 500), Cell("mlcd", 1, 0.1, 500)
    assert published(eight, one) == (75.2, 71.4) and published(one, eight) == (71.4, 75.2)
    assert published(eight, eight._replace(r=1.0)) == (75.2, 63.2)
    assert published(eight._replace(loss="mlc"), eight) == (76.9, 78.1)
    assert published(eight, eight._replace(l=3)) is None
    assert published(eight, eight._replace(k=1000)) is None
    single = one._replace(loss="single")
    assert published(eight._replace(loss="mlc"), single) is None
    assert published(single, eight) == (58.3, 67.5)
    million = Cell("mlcd", 8, 0.1, 1_000_000)
    assert published(million, million._replace(k=100_000)) == (75.2, 66.9)


def test_the_papers_figures_go_with_its_own_setting_alone():
    eight, four = Cell("mlcd", 8, 0.1, 500), Cell("mlcd", 4, 0.1, 500)
    all_negatives = eight._replace(r=1.0)
    for one, other in [
        (all_negatives, all_negatives._replace(l=1)),
        (four, four._replace(r=1.0)),
        (four._replace(r=0.5), four._replace(r=0.5, loss="mlc")),
        (all_negatives, all_negatives._replace(loss="mlc")),
        (four, four._replace(loss="single", l=1)),
        (all_negatives, Cell("single", 1, 1.0, 500)),
        (eight, four._replace(r=0.5)),
        (eight, four._replace(k=1000)),
        (all_negatives._replace(k=100_000), all_negatives._replace(k=1_000_000)),
    ]:
        assert published(one, other) is None, (one, other)

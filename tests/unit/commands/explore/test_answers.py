"""What the page of `mlcd explore` is told: lists, words, images."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.explore_runs import HOSTILE, K, N
from mlcd.commands.explore.answers import Missing
from mlcd.commands.explore.words import words_of
from mlcd.data.decode import BadImage


def test_lists_are_sorted_either_way_and_cut_in_pages(looked):
    answers, index = looked[2], looked[1]
    whole = answers.clusters("cohesion", rising=False, start=0, count=K)["clusters"]
    assert [one["id"] for one in whole] == index.orders["cohesion"].tolist()
    assert whole[-1]["cohesion"] is None and whole[-1]["cover"] == []
    rising = answers.clusters("cohesion", rising=True, start=0, count=K)["clusters"]
    assert [one["id"] for one in rising[:-1]] == [one["id"] for one in whole[-2::-1]]
    assert rising[-1]["id"] == whole[-1]["id"]
    part = answers.clusters("cohesion", rising=False, start=2, count=3)["clusters"]
    assert part == whole[2:5]
    with pytest.raises(Missing):
        answers.clusters("name; drop", rising=False, start=0, count=3)


def test_an_image_comes_with_its_texts_and_labels(explored, looked):
    answers = looked[2]
    for number in (0, 25, N - 1):
        found = answers.image(number // 20, number % 20)
        assert found["caption"] == explored.captions[number]
        assert found["url"] == f"http://127.0.0.1/{number % 20:09d}.jpg"
        assert [one["id"] for one in found["labels"]] == explored.label[number].tolist()
        said = [one["similarity"] for one in found["labels"]]
        np.testing.assert_allclose(said, explored.similarity[number], atol=1e-5)
    for chunk, row in ((3, 0), (0, 20)):
        with pytest.raises(Missing):
            answers.image(chunk, row)


def test_words_find_the_clusters_whose_captions_have_them_all(explored, looked):
    for query in ("cat", "red bus", "BUS, red!", "zebra", "nothing"):
        wanted = set(words_of(query))
        has = np.array([wanted <= set(words_of(text)) for text in explored.captions])
        count = np.bincount(explored.label[has, 0], minlength=K)
        found = {one["id"]: one["count"] for one in looked[2].by_words(query)["captions"]}
        # Of several words the count is that of the rarest: here they come together.
        assert found == {c: count[c] for c in range(K) if count[c]}
    for cluster in found:
        mine = looked[2].cluster(cluster, 0, 5, "zebra")["matches"]
        assert all("zebra" in one["caption"] for one in mine)


def test_matches_of_a_cluster_are_its_images_with_the_words(explored, looked):
    for cluster in range(K - 1):
        found = looked[2].cluster(cluster, 0, 2, "red bus")
        wanted = [n for n in explored.members(cluster) if "red bus" in explored.captions[n]]
        assert [20 * one["chunk"] + one["row"] for one in found["matches"]] == wanted
        assert len(found["images"]) <= 2


def test_words_are_runs_of_letters_and_digits():
    assert words_of("Red  BUS-42_x") == ["red", "bus", "42", "x"]
    # Composed and decomposed letters are one.
    assert words_of("E\u0301lan, naïve") == ["élan", "naïve"]
    assert words_of(HOSTILE)[:4] == ["img", "src", "x", "onerror"]


def test_an_image_finds_itself_and_its_cluster(encoded):
    run, answers = encoded
    assert answers.about()["by_image"] and answers.about()["by_text"]
    for number in (3, 30):
        found = answers.by_image(run.images[number])
        assert found["clusters"][0]["id"] == run.label[number, 0]
        best = found["images"][0]
        assert 20 * best["chunk"] + best["row"] == number
        assert best["similarity"] == pytest.approx(1, abs=2e-3)
        values = [one["similarity"] for one in found["images"]]
        assert values == sorted(values, reverse=True)
    with pytest.raises(BadImage):
        answers.by_image(b"no image")


def test_a_text_finds_clusters_by_the_encoders_other_tower(encoded):
    _, answers = encoded
    found = answers.by_words("a red bus")
    assert len(found["text"]["clusters"]) == K and found["problem"] == ""
    assert found["captions"]

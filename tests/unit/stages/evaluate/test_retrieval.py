"""Image retrieval and image–text retrieval, held to plain loops."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import torch

from helpers.builders import unit_vectors
from mlcd.cli import main
from mlcd.data import hdf5
from mlcd.stages.evaluate import retrieval


def test_recall_of_class_is_the_plain_loop(monkeypatch):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 9, 60)
    group = np.concatenate([np.arange(50), rng.integers(0, 50, 10)])
    label[0] = 77  # no other image has it: left out
    rows = rng.standard_normal((60, 8)) + 2 * rng.standard_normal((78, 8))[label]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    hits, counted = {1: 0, 5: 0}, 0
    for query in range(60):
        others = [place for place in range(60) if group[place] != group[query]]
        if not any(label[place] == label[query] for place in others):
            continue
        counted += 1
        others.sort(key=lambda place: -float(unit[place] @ unit[query]))
        for k in hits:
            hits[k] += any(label[place] == label[query] for place in others[:k])
    monkeypatch.setattr(retrieval, "_BLOCK", 60 * 7)
    columns = [torch.from_numpy(rows), torch.from_numpy(label), torch.from_numpy(group)]
    found, chance, number = retrieval.recall_of_class(*columns, *columns, [1, 5])
    assert number == counted < 60
    assert found == {k: hits[k] / counted for k in hits}
    assert 0 < chance[1] < found[1] < found[5]
    assert chance[1] < chance[5] < 1


def test_chance_draws_different_images():
    """Six images, three classes of two: five others are all, so that every model finds one."""
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 4)))
    columns = [rows, torch.tensor([0, 0, 1, 1, 2, 2]), torch.arange(6)]
    found, chance, _ = retrieval.recall_of_class(*columns, *columns, [1, 4, 5, 9])
    assert chance == pytest.approx({1: 1 / 5, 4: 4 / 5, 5: 1, 9: 1})
    assert found[5] == found[9] == 1
    # One of 3 answers among 7, by counting: 1 − C(4, 2) / C(7, 2).
    drawn = retrieval.chance_of_a_hit(torch.tensor([3]), torch.tensor([7]), 2)
    assert float(drawn) == pytest.approx(1 - 6 / 21)


def plain_rank(similarity, right) -> int:
    """The place of the best right answer, wrong ones just as similar before it."""
    best = max(similarity[place] for place in right)
    return 1 + sum(s >= best for place, s in enumerate(similarity) if place not in right)


def pairs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """30 images, each with one to three texts, near enough to be found sometimes."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((30, 6))
    image = np.concatenate([np.arange(30), rng.integers(0, 30, 20)])
    texts = images[image] + rng.standard_normal((50, 6))
    return tuple(torch.from_numpy(values) for values in (images, texts, image))


def test_image_text_ranks_are_the_plain_loop(monkeypatch):
    images, texts, image = pairs()
    monkeypatch.setattr(retrieval, "_BLOCK", 50 * 4)
    of_image, of_text = retrieval.image_text_ranks(images, texts, image)
    unit = [rows / rows.norm(dim=1, keepdim=True) for rows in (images, texts)]
    similarity = (unit[0] @ unit[1].T).numpy()
    for row in range(30):
        right = set(np.flatnonzero(image.numpy() == row).tolist())
        assert of_image[row] == plain_rank(similarity[row], right)
    for row in range(50):
        assert of_text[row] == plain_rank(similarity[:, row], {int(image[row])})


def test_embeddings_that_are_all_alike_find_nothing():
    same = torch.ones(12, 4)
    for ranks in retrieval.image_text_ranks(same, same, torch.arange(12)):
        assert (ranks == 12).all()


def test_embeddings_that_are_no_numbers_find_nothing():
    none = torch.full((12, 4), torch.nan)
    for images, texts in ((none, none), (none, torch.randn(12, 4)), (torch.randn(12, 4), none)):
        for ranks in retrieval.image_text_ranks(images, texts, torch.arange(12)):
            assert (ranks == 12).all()


@pytest.fixture
def files(tmp_path):
    """The two embedding files of `pairs`, and a function that writes the texts' anew."""
    images, texts, image = pairs()
    keys = np.array([b"p%02d" % row for row in range(30)])
    hdf5.write(tmp_path / "i.h5", "embeddings", {"embedding": images.numpy(), "key": keys}, {})

    given = {"embedding": texts.numpy(), "key": keys[image.numpy()]}

    def write_texts(**changes):
        hdf5.write(tmp_path / "t.h5", "text_embeddings", given | changes, {})

    write_texts()
    return tmp_path, given["key"], write_texts


def image_text(folder) -> int:
    return main(
        ["evaluate", "--part", "image_text", "--threads", "1", "--images", str(folder / "i.h5"),
         "--texts", str(folder / "t.h5"), "--output", str(folder / "out.json")]
    )  # fmt: skip


def test_two_embedding_files_give_recalls_both_ways(files):
    folder, _, _ = files
    assert image_text(folder) == 0
    found = json.loads((folder / "out.json").read_text())
    assert (found["images"], found["texts"]) == (30, 50)
    of_image, of_text = retrieval.image_text_ranks(*(rows.float() if rows.is_floating_point()
                                                     else rows for rows in pairs()))  # fmt: skip
    scores = found["scores"]
    assert scores["image_to_text_r1"] == round(float((of_image <= 1).double().mean()), 4)
    assert scores["text_to_image_r10"] == round(float((of_text <= 10).double().mean()), 4)
    assert scores["text_to_image_median_rank"] == float(np.median(of_text))
    assert scores["image_to_text_r1"] < scores["image_to_text_r5"] <= scores["image_to_text_r10"]


def test_files_that_do_not_fit_are_refused(files, capsys):
    folder, of, write = files
    cases = [
        ({"key": np.array([b"nobody", *of[1:]])}, "no image of key 'nobody'"),
        ({"key": np.where(of == b"p07", b"p08", of)}, "no text for the image 'p07'"),
        ({"embedding": unit_vectors(50, 3)}, "dimension 3, the images' is 6"),
    ]
    for change, message in cases:
        write(**change)
        assert image_text(folder) == 2
        assert message in capsys.readouterr().err
    shapes = [
        (
            {"embedding": np.ones(50, np.float32)},
            "'embedding' is float32 [50]; expected numbers of",
        ),
        ({"key": np.arange(50)}, "'key' is int64 [50]; expected texts of 1 dimensions"),
        ({"key": of[:49]}, "50 rows and 49 keys; give a key for each row"),
        ({"key": np.array([b"\xff", *of[1:]])}, r"no image of key '\\xff'"),
    ]
    for change, message in shapes:
        write(**change)
        assert image_text(folder) == 2
        assert message in capsys.readouterr().err
    (folder / "t.h5").write_bytes((folder / "i.h5").read_bytes())
    assert image_text(folder) == 2
    assert "expected a file of text_embeddings, found embeddings" in capsys.readouterr().err


def test_files_of_any_program_are_read(files):
    folder, of, _ = files
    assert image_text(folder) == 0
    expected = (folder / "out.json").read_bytes()
    images, texts, _ = pairs()
    keys = {"i.h5": [b"p%02d" % row for row in range(30)], "t.h5": of.tolist()}
    for name, rows in (("i.h5", images), ("t.h5", texts)):
        (folder / name).unlink()
        with h5py.File(folder / name, "w") as file:
            file["embedding"] = rows.numpy()
            file["key"] = [key.decode() for key in keys[name]]
    (folder / "out.json").unlink()
    assert image_text(folder) == 0
    assert (folder / "out.json").read_bytes() == expected


def test_embeddings_that_are_not_finite_are_refused(files, capsys):
    folder, of, write = files
    rows = np.ones((50, 6), np.float32)
    rows[7, 2] = np.nan
    write(embedding=rows)
    assert image_text(folder) == 2
    message = f"t.h5: 1 embeddings are not finite, the first of {of[7].decode()!r}"
    assert message in capsys.readouterr().err

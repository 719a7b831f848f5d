"""`mlcd search`: the nearest images, and what is refused."""

from __future__ import annotations

import shutil

import numpy as np

from helpers.builders import embeddings_file, jpeg, unit_vectors
from helpers.searches import encode, search
from mlcd.commands.search import nearest
from mlcd.data.embeddings import Embeddings


def test_nearest_is_exact_over_blocks(tmp_path, monkeypatch):
    rows = unit_vectors(50, 8)
    rows[31] = rows[7]  # a tie goes to the lower row
    file = Embeddings(embeddings_file(tmp_path / "E.h5", rows))
    monkeypatch.setattr("mlcd.commands.search._BLOCK", 9)
    queries = rows[[7, 20]]
    found, cosines = nearest(file, queries, 6)
    whole = queries @ file.read().T
    expected = np.argsort(-whole, axis=1, kind="stable")[:, :6]
    assert found.tolist() == expected.tolist() and found[0, :2].tolist() == [7, 31]
    np.testing.assert_allclose(cosines, np.take_along_axis(whole, expected, axis=1), atol=1e-6)


def test_a_folder_that_changed_since_is_told(models, folder, tmp_path, capsys):
    place, kept, page = tmp_path / "place", tmp_path / "E.h5", tmp_path / "page.html"
    (place / "b").mkdir(parents=True)
    for name in ("a.jpg", "b/c.JPG", "z.jpg", "empty.png"):
        shutil.copy(folder / name, place / name)
    words = [place / "a.jpg", "--folder", place, "--model", models / "train",
             "--embeddings", kept, "--output", page]  # fmt: skip
    assert search(*words) == 0 and search(*words) == 0
    assert "changed since" not in capsys.readouterr().err
    (place / "z.jpg").write_bytes(jpeg(9, 90))
    (place / "new 1.jpg").write_bytes(jpeg(5))
    (place / "new 2.jpg").write_bytes(jpeg(6))
    (place / "b" / "c.JPG").unlink()
    assert search(*words) == 0
    said = capsys.readouterr().err
    assert f"{kept}: the folder changed since: 2 new images are not searched, 1 of" in said
    assert "1 are gone; remove the file" in said
    kept.unlink()
    assert search(*words) == 0
    assert "changed since" not in capsys.readouterr().err


def test_searches_that_cannot_be_are_refused(models, folder, tmp_path, capsys):
    page, kept = tmp_path / "page.html", tmp_path / "E.h5"
    encode(folder, "--model", models / "train", "--output", kept)
    capsys.readouterr()
    other, away = tmp_path / "nowhere", folder / "b" / "deep"
    common = ["--output", page, "--embeddings", kept]
    for query, model, place, message in [
        ("words.gif", "train", folder, "cannot be searched for (not_an_image"),
        ("missing.jpg", "train", folder, "no such file"),
        ("a.jpg", "other", folder, "made by another encoder"),
        ("a.jpg", "train", other, "no such folder"),
        ("a.jpg", "train", away, "none of the nearest images lies in"),
    ]:
        words = [folder / query, "--folder", place, "--model", models / model, *common]
        assert search(*words) == 2
        assert message in capsys.readouterr().err
    assert not page.exists()

"""Words of lines, the vocabulary of all chunks, and the labels of a chunk, without any reader."""

from __future__ import annotations

import json

import numpy as np
import pytest

from helpers.ocr_runs import ocr, text_file
from mlcd.data.labels import Labels
from mlcd.data.ocr import Text, Vocabulary
from mlcd.stages.ocr.words import MOST_CHARACTERS, words_by_image, words_of


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Fresh BREAD, 25% off!", ["fresh", "bread", "25", "off"]),
        ("don't (walk) -- 3.5", ["don't", "walk", "3.5"]),
        # Full-width letters, a ligature, a German sharp s: forms of the same letters.
        ("ＯＰＥＮ ﬁsh Straße", ["open", "fish", "strasse"]),
        ("cafe\u0301 CAFÉ", ["café", "café"]),
        ("a I 7 ab", ["ab"]),
        ("... !? --", []),
        ("出口 EXIT", ["出口", "exit"]),
        # A mark without letters, direction marks, zero-width and control characters, a lone half.
        ("\u0301ab \u202eevil\u202c to\u200bgether x\x00y \ud800ok",
         ["ab", "evil", "together", "xy", "ok"]),
        ("<script>alert(1)</script>", ["script>alert(1)</script"]),
        ("x" * MOST_CHARACTERS + " " + "y" * (MOST_CHARACTERS + 1), ["x" * MOST_CHARACTERS]),
        ("", []),
    ],
)  # fmt: skip
def test_words_of_a_line(line, words):
    assert words_of(line, 2) == words
    # What comes out is a word already.
    assert [word for each in words for word in words_of(each, 2)] == words


def test_lines_come_back_as_they_were_read(tmp_path):
    images = [[("Grüße 出口", 0.9), ("", 0.1)], [], [("z" * 1000, 0.5)]]
    text = Text(text_file(tmp_path / "a-00000.h5", images))
    assert (text.n, text.lines, text.chunk) == (3, 3, "a-00000")
    assert text.texts() == ["Grüße 出口", "", "z" * 256]
    assert text.rows().tolist() == [0, 0, 2]
    assert text.confidence().tolist() == pytest.approx([0.9, 0.1, 0.5])
    assert text.boxes().shape == (3, 4)


def test_a_line_counts_from_the_confidence_on(tmp_path):
    images = [[("stop stop", 0.75), ("Stop now", 0.9)], [("stop", 0.5)], [("stop", float("nan"))]]
    text = Text(text_file(tmp_path / "a-00000.h5", images))
    (found,) = words_by_image(text, 0.75, 2)
    assert found[0] == 0
    assert found[1] == pytest.approx({"stop": 0.9, "now": 0.9})


def chunks(folder):
    one = [[("stop sign", 0.9)], [("Stop", 0.8), ("sale", 0.95)], [], [("rare", 0.99)]]
    two = [[("sale stop", 0.71)], [("sale sale sale", 0.9)], [("zebra", 0.9)], [("sign", 0.69)]]
    return [text_file(folder / "text" / f"a-{index:05d}.h5", images)
            for index, images in enumerate((one, two))]  # fmt: skip


def vocabulary(folder, paths, *options):
    output = folder / "vocabulary.json"
    status = ocr("vocabulary", "--text", *paths, "--output", output, *options)
    return Vocabulary(output) if status == 0 else None


def test_words_in_most_images_come_first_whatever_the_order_of_chunks(tmp_path):
    paths = chunks(tmp_path)
    found = vocabulary(tmp_path, paths, "--min-count", 2)
    # sale and stop are in three images each, and one image counts once; sign is sure in one only.
    assert list(zip(found.words, found.images, strict=True)) == [("sale", 3), ("stop", 3)]
    record = json.loads((tmp_path / "vocabulary.json").read_text())
    about = {name: record[name] for name in ("images", "images_with_words", "distinct_words")}
    assert about == {"images": 8, "images_with_words": 6, "distinct_words": 5}
    again = vocabulary(tmp_path, reversed(paths), "--min-count", 2)
    assert again.words == found.words
    every = vocabulary(tmp_path, paths, "--min-count", 1)
    assert every.words == ["sale", "stop", "rare", "sign", "zebra"]
    assert vocabulary(tmp_path, paths, "--min-count", 1, "--most-words", 3).words == every.words[:3]
    longer = vocabulary(tmp_path, paths, "--min-count", 1, "--min-length", 5)
    assert longer.words == ["zebra"]


def test_no_word_at_all_is_refused_with_the_keys(tmp_path, capsys):
    assert vocabulary(tmp_path, chunks(tmp_path), "--min-count", 9) is None
    said = capsys.readouterr().err
    assert "ocr.min_count: none of the 5 words in 6 of 8 images is in 9 of them" in said


def test_labels_are_the_surest_words_that_are_classes(tmp_path):
    paths = chunks(tmp_path)
    vocabulary(tmp_path, paths, "--min-count", 1)
    for index, expected in enumerate(
        (
            # sign and stop stand in one line: that in more images first.
            [[1, 3], [0, 1], [-1, -1], [2, -1]],
            [[0, 1], [0, -1], [4, -1], [-1, -1]],
        )
    ):
        output = tmp_path / "labels" / paths[index].name
        words = ["--vocabulary", tmp_path / "vocabulary.json", "--output", output, "--top", 2]
        assert ocr("labels", "--text", paths[index], *words) == 0
        found = Labels(output)
        assert (found.num_classes, found.l, found.chunk) == (5, 2, f"a-{index:05d}")
        assert found.embeddings == "e" and not found.manifest
        assert found.label().tolist() == expected
        assert ((found.similarity() > 0) == (found.label() >= 0)).all()
    assert found.similarity()[0] == pytest.approx(0.71, abs=1e-3)


def test_chunks_without_text_or_images_have_labels_too(tmp_path):
    paths = [*chunks(tmp_path), text_file(tmp_path / "text" / "b-00000.h5", [[], []]),
             text_file(tmp_path / "text" / "c-00000.h5", [])]  # fmt: skip
    vocabulary(tmp_path, paths, "--min-count", 1)
    for path, n in ((paths[2], 2), (paths[3], 0)):
        output = tmp_path / "labels" / path.name
        words = ["--vocabulary", tmp_path / "vocabulary.json", "--output", output]
        assert ocr("labels", "--text", path, *words) == 0
        assert Labels(output).label().shape == (n, 10)
        assert (Labels(output).label() == -1).all()


@pytest.mark.parametrize("what", ["rows", "ends"])
def test_a_file_that_contradicts_itself_is_refused(tmp_path, what):
    from mlcd.data import hdf5
    from mlcd.data.ocr import KIND, Line, columns
    from mlcd.utils.errors import UserError

    data = columns([(0, [Line("one", 0.9, (0, 0, 1, 1))])])
    if what == "rows":
        data["row"] = np.array([7], np.int32)
    else:
        data["bytes"] = np.array([9], np.int32)
    about = {"chunk": "a", "images": 1, "failed": 0, "embeddings": "e"}
    hdf5.write(tmp_path / "a.h5", KIND, data, about)
    text = Text(tmp_path / "a.h5")
    with pytest.raises(UserError, match="rerun ocr"):
        _ = (text.rows(), text.texts())

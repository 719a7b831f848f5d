"""Text in images by RapidOCR itself, where the extra `ocr` is installed."""

from __future__ import annotations

import importlib.util

import pytest

from helpers import builders
from helpers.ocr_runs import chunk_of, drawn, ocr
from mlcd.data.ocr import Text
from mlcd.stages.ocr.words import words_by_image

INSTALLED = importlib.util.find_spec("rapidocr") and importlib.util.find_spec("onnxruntime")
needs_reader = pytest.mark.skipif(not INSTALLED, reason="the extra ocr is not installed")
#: As small as finds these letters.
FAST = ("--side", 224)


@pytest.mark.skipif(bool(INSTALLED), reason="the extra ocr is installed")
def test_without_the_extra_it_is_named(tmp_path, capsys):
    manifest, rows = chunk_of(tmp_path, [drawn()])
    words = ["--rows", rows, "--images", manifest, "--output", tmp_path / "t.h5"]
    assert ocr("text", *words) == 2
    assert "is not installed; pip install 'mlcd[ocr]'" in capsys.readouterr().err


def test_rows_of_other_images_are_refused(tmp_path, capsys):
    manifest, _ = chunk_of(tmp_path, [drawn()])
    _, others = chunk_of(tmp_path / "others", [drawn(side=(64, 64))])
    words = ["--rows", others, "--images", manifest, "--output", tmp_path / "t.h5"]
    assert ocr("text", *words) == 2
    assert "made from other images" in capsys.readouterr().err


@needs_reader
def test_words_that_are_drawn_are_read(tmp_path):
    images = [
        drawn("Fresh BREAD", "25% off"),
        drawn(),
        b"no image at all",
        drawn("don't walk"),
        builders.jpeg(3),
    ]
    manifest, rows = chunk_of(tmp_path, images)
    outputs = []
    for workers in (1, 2):
        outputs.append(tmp_path / f"t{workers}.h5")
        words = ["--rows", rows, "--images", manifest, "--output", outputs[-1], *FAST]
        assert ocr("text", *words, "--threads", workers, "--max-failed", 0.2) == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    text = Text(outputs[0])
    assert (text.n, text.failed) == (5, 1)
    found = {row: list(words) for row, words in words_by_image(text, 0.7, 2)}
    assert found == {0: ["fresh", "bread", "25", "off"], 3: ["don't", "walk"]}
    boxes = text.boxes()
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    # The first line lies above the second, both in the left part.
    assert boxes[0, 3] < boxes[1, 1] and boxes[:2, 0].max() < 0.2


@needs_reader
@pytest.mark.parametrize("side", [(120, 3000), (3000, 60), (2, 4000)])
def test_strips_are_read_without_being_blown_up(side):
    from mlcd.stages.ocr.engine import ReadLines

    found = ReadLines(224, 10**6)(drawn("one", side=side))
    assert [line.text for line in found] == ([] if side[0] == 2 else ["one"])
    for line in found:
        left, top, right, bottom = (
            share * length for share, length in zip(line.box, side * 2, strict=True)
        )
        # Where it was drawn, in pixels of the image, and not of what was padded.
        assert 0 <= left < 20 < right < 90 and 0 <= top < 40 < bottom < 70


@needs_reader
def test_a_job_that_is_cut_off_ends_with_the_same_bytes(tmp_path, monkeypatch):
    from mlcd.stages.ocr import read

    monkeypatch.setattr(read, "_PART", 2)
    monkeypatch.setattr(read, "_BATCH", 1)
    manifest, rows = chunk_of(tmp_path, [drawn(word) for word in ("one", "two", "six", "ten")])
    words = ["--rows", rows, "--images", manifest, "--threads", 1, *FAST]
    assert ocr("text", *words, "--output", tmp_path / "whole" / "t.h5") == 0

    write, written = read.hdf5.write, []

    def cut_off(path, *rest):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *rest)

    with monkeypatch.context() as context:
        context.setattr(read.hdf5, "write", cut_off)
        assert ocr("text", *words, "--output", tmp_path / "cut" / "t.h5") == 130
    kept = written[0].stat().st_mtime_ns
    read_again = []
    with monkeypatch.context() as context:
        context.setattr(
            read.hdf5, "write", lambda path, *rest: (read_again.append(path), write(path, *rest))
        )
        assert ocr("text", *words, "--output", tmp_path / "cut" / "t.h5") == 0
    assert len(read_again) == 1 and read_again[0] != written[0] and kept
    assert (tmp_path / "cut" / "t.h5").read_bytes() == (tmp_path / "whole" / "t.h5").read_bytes()
    assert not list((tmp_path / "cut").glob("state/*"))


@needs_reader
def test_too_many_images_that_cannot_be_read_end_it(tmp_path, monkeypatch, capsys):
    """Else a broken reader would leave a chunk without any word, and nobody would know."""
    from mlcd.stages.ocr import read

    monkeypatch.setattr(read, "_PART", 2)
    images = [drawn("one"), b"none", drawn("two"), b"nor this"]
    manifest, rows = chunk_of(tmp_path, images)
    output = tmp_path / "t.h5"
    words = ["--rows", rows, "--images", manifest, "--output", output, "--threads", 1, *FAST]
    assert ocr("text", *words, "--max-failed", 0.25) == 2
    said = capsys.readouterr().err
    assert "ocr.max_failed: 2 of the 4 images of chunk a-00000 could not be read" in said
    assert "(not_an_image 2), more than 0.25 of them" in said and not output.exists()
    # The first part is kept, with its failure; the second is read again.
    assert len(list(tmp_path.glob("state/*/*.h5"))) == 1
    assert ocr("text", *words, "--max-failed", 0.25) == 2
    assert "2 of the 4 images" in capsys.readouterr().err
    assert ocr("text", *words, "--max-failed", 0.5) == 0
    assert Text(output).failed == 2


@needs_reader
def test_own_labels_say_which_images_are_read(tmp_path):
    from mlcd.data import hdf5, labels
    from mlcd.data.embeddings import Embeddings

    manifest, rows = chunk_of(tmp_path, [drawn("one"), drawn("two"), drawn("six")])
    places = Embeddings(rows).places(1, 3)
    own = tmp_path / "labels.h5"
    data = {"label": builders.np.zeros((2, 1), "int32"), **places._asdict()}
    hdf5.write(own, labels.KIND, data, {"chunk": "a-00000", "num_classes": 1,
               "manifest": Embeddings(rows).attributes["manifest"], "section": "{}"})  # fmt: skip
    words = ["--rows", own, "--images", manifest, "--output", tmp_path / "t.h5", *FAST]
    assert ocr("text", *words, "--threads", 1) == 0
    text = Text(tmp_path / "t.h5")
    assert text.embeddings == labels.Labels(own).fingerprint
    assert {row: list(words) for row, words in words_by_image(text, 0.7, 2)} == {
        0: ["two"], 1: ["six"]
    }  # fmt: skip

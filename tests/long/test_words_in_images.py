"""A whole run whose images hold words: read by RapidOCR, trained on, sealed, and made again."""

from __future__ import annotations

import importlib.util
import itertools
import json

import pytest

from helpers.checkout import Checkout
from helpers.ocr_runs import drawn
from mlcd import cli
from mlcd.data.checkpoints import newest
from mlcd.data.labels import Labels
from mlcd.data.ocr import Text, Vocabulary

INSTALLED = importlib.util.find_spec("rapidocr") and importlib.util.find_spec("onnxruntime")
pytestmark = [
    pytest.mark.long,
    pytest.mark.workflow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(not INSTALLED, reason="the extra ocr is not installed"),
]

#: Each image has two of these, or none.
WORDS = ("bread", "coffee", "market", "school", "garden", "window")
IMAGES, CHUNK = 48, 24
OCR = {"enabled": True, "side": 224, "min_count": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    checkout = Checkout(tmp_path_factory.mktemp("run") / "checkout")
    photos = checkout.folder / "photos"
    photos.mkdir()
    pairs = itertools.cycle([*itertools.combinations(WORDS, 2), ()])
    for number, words in zip(range(IMAGES), pairs, strict=False):
        (photos / f"{number:03d}.png").write_bytes(drawn(*words, side=(224, 224)))
    checkout.configure(
        metadata=["photos"], prepare={"chunk_rows": CHUNK}, ocr=OCR, train={"ocr_weight": 0.5},
        evaluate={"datasets": []}, report={"montage_clusters": 1, "montage_images": 2},
    )  # fmt: skip
    done = checkout.snakemake("--cores", "2", timeout=2400)
    assert done.returncode == 0, done.stdout[-6000:]
    return checkout


@pytest.fixture
def results(run, monkeypatch):
    monkeypatch.chdir(run.folder)
    return run.folder / "results"


def test_the_words_are_those_that_were_drawn(results):
    found = Vocabulary(results / "ocr" / "vocabulary.json")
    assert sorted(found.words) == sorted(WORDS)
    paths = sorted((results / "ocr" / "labels").glob("*.h5"))
    labels = [Labels(path) for path in paths]
    assert [one.n for one in labels] == [CHUNK, IMAGES - CHUNK]
    texts = [Text(results / "ocr" / "text" / path.name) for path in paths]
    assert sum(text.failed for text in texts) == 0
    given = [int((one.label() >= 0).sum(1).max()) for one in labels]
    assert given == [2, 2] and all((one.label() < 0).all(1).any() for one in labels)


def test_the_second_head_was_trained(results):
    lines = [json.loads(line) for line in (results / "train" / "metrics.jsonl").open()]
    assert all(line["ocr_loss"] > 0 for line in lines)
    assert json.loads((results / "train" / "encoder.json").read_text())["heads"] == {
        "ocr": len(WORDS)
    }
    (state,) = (results / "train" / "state").glob("encoder-*/checkpoints")
    assert newest(state).heads == {"ocr": len(WORDS)}


def test_a_threshold_reads_no_image_again(run):
    change = {
        "metadata": ["photos"],
        "prepare": {"chunk_rows": CHUNK},
        "evaluate": {"datasets": []},
        "report": {"montage_clusters": 1, "montage_images": 2},
    }
    run.configure(ocr={**OCR, "min_confidence": 0.5}, train={"ocr_weight": 0.5}, **change)
    stale = run.stale()
    assert stale["ocr_vocabulary"] == 1 and stale["ocr_labels"] == 2 and "ocr_text" not in stale
    assert stale["train"] == 1 and "label" not in stale
    run.configure(ocr=OCR, train={"ocr_weight": 0.5}, **change)
    assert run.stale() == {}


def test_the_seal_holds_and_every_file_is_made_again_equal(results, capsys):
    assert cli.main(["status", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["state"] == "complete" and "ocr" in {one["name"] for one in told["stages"]}
    assert cli.main(["audit", "verify", "results", "--bytes", "--numbers"]) == 0
    assert cli.main(["audit", "explain", "results", "train/encoder.safetensors"]) == 0
    assert "ocr/labels" in capsys.readouterr().out
    assert cli.main(["audit", "replay", "results", "--all"]) == 0
    said = capsys.readouterr().out
    for made in ("ocr/text/", "ocr/vocabulary.json", "ocr/labels/", "train", "export/timm"):
        assert any(line.startswith(made) and ": equal" in line for line in said.splitlines()), said

"""The words of images as a part of a chain: sealed, explained, and made again from the text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.audit_changes import audit
from helpers.builders import change_record, image_store, unit_vectors
from helpers.builders import embeddings_file as write_embeddings
from helpers.ocr_runs import ocr, text_file
from mlcd import cli
from mlcd.commands.audit import lock
from mlcd.config import Ocr
from mlcd.data.embeddings import Embeddings
from mlcd.data.ocr import Text

SECTION = Ocr(enabled=True, min_count=2, top=3)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a run up to its words, as if their text had been read, sealed."""
    results = tmp_path_factory.mktemp("words") / "results"
    texts = []
    for number in range(2):
        name = f"a-{number:05d}"
        manifest = image_store(results / "images" / name, 4, seed=number)
        vectors = results / "embeddings" / f"{name}.h5"
        vectors.parent.mkdir(exist_ok=True)
        write_embeddings(vectors, unit_vectors(4, 8, seed=number), manifest=manifest)
        images = [[("open now", 0.9)], [], [("Open", 0.8), ("sale", 0.9)], [("sale", 0.6)]]
        path = results / "ocr" / "text" / f"{name}.h5"
        texts.append(text_file(path, images, Embeddings(vectors).fingerprint))
    vocabulary = results / "ocr" / "vocabulary.json"
    words = ["--config", SECTION.to_json()]
    assert ocr("vocabulary", "--text", *texts, "--output", vocabulary, *words) == 0
    for path in texts:
        output = results / "ocr" / "labels" / path.name
        more = ["--vocabulary", vocabulary, "--output", output, *words]
        assert ocr("labels", "--text", path, *more) == 0
    sections = {"download": {}, "embed": {}, "ocr": SECTION.model_dump(mode="json")}
    stages = {name: {"section": one, "code": "a" * 16} for name, one in sections.items()}
    seal = ["audit", "seal", str(results), "--stages", json.dumps(stages), "--inputs"]
    assert cli.main(seal) == 0
    return results


def test_the_chain_leads_from_the_labels_to_the_rows_that_were_read(sealed: Path) -> None:
    status, said = audit("verify", str(sealed), "--bytes")
    assert status == 0, said
    status, said = audit("explain", str(sealed), "ocr/labels/a-00000.h5")
    assert status == 0
    for word in ("by stage ocr", "ocr/text/a-00000.h5", "ocr/vocabulary.json", "by stage embed"):
        assert word in said, said
    status, said = audit("explain", str(sealed), "ocr/text/a-00001.h5")
    assert status == 0 and "goes into ocr/vocabulary.json" in said, said


def test_vocabulary_and_labels_are_made_again(sealed: Path) -> None:
    status, said = audit("replay", str(sealed), "ocr/vocabulary.json", "ocr/labels/a-00001.h5")
    assert status == 0, said
    assert said.count(": equal") == 2, said


def test_a_word_that_was_slipped_in_is_found(sealed: Path) -> None:
    path = sealed / "ocr" / "vocabulary.json"
    before = path.read_bytes()
    change_record(path, words=[["open", 4], ["slipped", 3]])
    try:
        assert audit("verify", str(sealed))[0] == 1
    finally:
        path.write_bytes(before)
    assert Text(sealed / "ocr" / "text" / "a-00000.h5").lines == 4


def test_words_are_none_of_the_labels_that_are_published(sealed: Path) -> None:
    found = lock.read(sealed)
    assert "ocr/labels/a-00000.h5" in found["files"] and lock.labels_of(sealed, found) == []

"""The second head: its mathematics, its place in the index, and trainings with it on real ranks."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.train_runs import (
    CHECKED,
    TWO,
    VIT,
    checkpoint_of,
    continued,
    kill_when,
    lines,
    planned,
    train_many,
    without_timing,
)
from helpers.train_stores import CLASSES, mlcd_train, stores, words_file
from mlcd.classifier import NegativeSampler, ShardedClassifier
from mlcd.config.train import Train
from mlcd.data.checkpoints import Checkpoint
from mlcd.data.embeddings import Embeddings
from mlcd.launch.api import run_gang
from mlcd.launch.options import Resources
from mlcd.losses import cluster_loss
from mlcd.stages.train import inputs
from mlcd.stages.train.ocr_head import OcrHead
from mlcd.utils.errors import UserError

#: Words that are classes, and positives per image. Two of three images have none.
WORDS, TOP = 7, 4
SECOND = {"ocr_weight": 0.5}


def add_words(paths: dict) -> dict:
    """Give the images of `paths` words: most have none."""
    found = []
    for number, path in enumerate(paths["embeddings"]):
        random = np.random.default_rng(number)
        words = random.integers(0, WORDS, (Embeddings(path).n, TOP))
        words[:, 2:] = -1
        words[np.arange(len(words)) % 3 > 0] = -1
        output = Path(path).parents[1] / "words" / Path(path).name
        output.parent.mkdir(exist_ok=True)
        found.append(words_file(output, words, WORDS, path))
    return {**paths, "ocr-labels": found}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return add_words(stores(tmp_path_factory.mktemp("stores")))


def given(**more: object) -> SimpleNamespace:
    section = Train(**{**VIT, **SECOND, **more})
    return SimpleNamespace(section=section, num_words=WORDS, memory_limit=None)


def test_the_loss_is_that_of_two_classifiers_of_their_own():
    torch.set_num_threads(1)
    place = SimpleNamespace(device=torch.device("cpu"))
    second = OcrHead(given(), TOP, place, None)
    same = {"kind": "mlcd", "scale": 16.0, "margin": 0.3, "margin_type": "cosface"}
    first = ShardedClassifier(CLASSES, 16, **same, negative_ratio=0.5, seed=0)
    embedding = torch.randn(12, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(36).view(12, 3) % CLASSES
    words = torch.full((12, TOP), -1)
    words[:4, :2] = torch.tensor([[0, 1], [5, 5], [6, -1], [2, 3]])
    both = torch.cat([labels, words], 1)
    assert all(map(torch.equal, second.split(both), (labels, words)))

    joint = embedding.clone().requires_grad_()
    total = second.add(first(joint, labels, 3), joint, words, 3, 1.0)
    total.backward()
    alone = embedding.clone().requires_grad_()
    centers = [one.weight.detach().clone().requires_grad_() for one in (first, second.classifier)]
    drawn = [one.sampled_rows(3) for one in (first, second.classifier)]
    main = cluster_loss(alone, centers[0], labels, drawn[0], **same)
    # The mean is over all twelve images, of which four have words.
    read = cluster_loss(alone[:4], centers[1], words[:4], drawn[1], **same) * (4 / 12)
    (main + 0.5 * read).backward()
    assert float(total) == pytest.approx(float(main + 0.5 * read), rel=1e-6)
    assert second.loss == pytest.approx(float(read), rel=1e-6)
    torch.testing.assert_close(joint.grad, alone.grad, rtol=1e-5, atol=1e-6)
    for one, center in zip((first, second.classifier), centers, strict=True):
        dense = torch.zeros_like(center)
        dense[one.gradient.rows] = one.gradient.values
        torch.testing.assert_close(dense, center.grad, rtol=1e-5, atol=1e-6)
    before = second.classifier.weight.clone()
    told = second.step(0.01)
    assert told["ocr_loss"] == pytest.approx(float(read), rel=1e-6) and told["ocr_grad_norm"] > 0
    assert told["ocr_share"] == pytest.approx(4 / 12)
    assert not torch.equal(before, second.classifier.weight) and second.loss == 0


def test_its_negatives_and_centers_are_none_of_the_first_heads():
    place = SimpleNamespace(device=torch.device("cpu"))
    head = OcrHead(given(seed=4), TOP, place, None).classifier
    first = ShardedClassifier(
        WORDS, 16, kind="mlcd", scale=16.0, margin=0.3, margin_type="cosface", negative_ratio=0.5,
        seed=4,
    )  # fmt: skip
    assert not torch.equal(head.weight, first.weight)
    steps = range(20)
    mine, others = ([one.sampled_rows(step).tolist() for step in steps] for one in (head, first))
    assert mine != others
    other = OcrHead(given(seed=5), TOP, place, None).classifier
    assert mine != [other.sampled_rows(step).tolist() for step in steps]
    assert len(NegativeSampler(WORDS, 4, 1 << 33).draw(0, 0, WORDS)) == 4


def test_embeddings_come_to_their_words_and_others_stay():
    place = SimpleNamespace(device=torch.device("cpu"))
    head = OcrHead(given(), TOP, place, None)
    embedding = torch.randn(12, 16, generator=torch.Generator().manual_seed(2)).requires_grad_()
    before = embedding.detach().clone()
    words = torch.full((12, TOP), -1)
    words[:6, 0] = torch.arange(6)
    found = []
    optimizer = torch.optim.SGD([embedding], lr=1.0)
    for step in range(40):
        head.add(torch.zeros(()), embedding, words, step, 1.0).backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(head.step(0.02)["ocr_loss"])
    assert found[-1] < 0.4 * found[0]
    assert torch.equal(embedding.detach()[6:], before[6:])
    nearest = torch.nn.functional.normalize(embedding.detach()[:6]) @ head.classifier.weight.T
    assert nearest.argmax(1).tolist() == list(range(6))


def check(paths, **more):
    names = ("labels", "embeddings", "images", "centroids")
    words = more.get("words", paths["ocr-labels"])
    return inputs.check(*(paths[name] for name in names), words=words)


def test_words_stand_behind_the_labels_of_their_image(paths, tmp_path):
    sources = check(paths)
    n = inputs.build_index(sources, tmp_path / "both", 2)
    index = inputs.Index(tmp_path / "both")
    assert (index.words, index.label.shape) == (TOP, (n, 2 + TOP))
    inputs.build_index(check(paths, words=[]), tmp_path / "plain", 2)
    plain = inputs.Index(tmp_path / "plain")
    assert plain.words == 0 and np.array_equal(plain.label, index.label[:, :2])
    assert "words" not in json.loads((tmp_path / "plain" / "index.json").read_text())
    # By the digest of its bytes each image is known.
    digests = np.concatenate([Embeddings(path).places().digest for path in paths["embeddings"]])
    words = np.concatenate([file.label() for file in sources.words])
    order = [digests.tolist().index(digest) for digest in index.place["digest"].tolist()]
    assert np.array_equal(index.label[:, 2:], words[order])
    assert (index.label[:, 2] >= 0).sum() == len(range(0, 40, 3)) + len(range(0, 24, 3))


def test_words_of_other_rows_are_refused(paths, tmp_path):
    with pytest.raises(UserError, match=r"no --ocr-labels given for its chunk c-00001"):
        check(paths, words=paths["ocr-labels"][:1])
    other = tmp_path / "c-00001.h5"
    words_file(other, np.zeros((24, TOP)), WORDS, paths["embeddings"][0])
    with pytest.raises(UserError, match=r"c-00001.h5: made from other rows than .*rerun ocr"):
        check(paths, words=[paths["ocr-labels"][0], str(other)])
    words_file(other, np.zeros((24, TOP)), WORDS + 1, paths["embeddings"][1])
    with pytest.raises(UserError, match=f"{TOP} of {WORDS + 1} words, but .* has {TOP} of {WORDS}"):
        check(paths, words=[paths["ocr-labels"][0], str(other)])
    words_file(other, np.zeros((24, TOP)), WORDS, paths["embeddings"][1], "w")
    with pytest.raises(UserError, match=r"c-00001.h5: of another vocabulary than .*c-00000.h5"):
        check(paths, words=[paths["ocr-labels"][0], str(other)])
    with pytest.raises(UserError, match=r"labels.*: holds no words of images"):
        check(paths, words=paths["labels"])
    plain = {name: value for name, value in paths.items() if name != "ocr-labels"}
    with pytest.raises(UserError, match=r"--ocr-labels: train.ocr_weight needs the words"):
        planned(plain, tmp_path / "out", **SECOND)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, paths):
    """Trainings on two ranks, by one gang."""
    root = tmp_path_factory.mktemp("runs")
    variants: dict = {
        "whole": (SECOND, CHECKED),
        "micro": (SECOND, {"micro_batch": 2}),
        "heavy": ({"ocr_weight": 20.0}, {}),
        "off": ({}, {}),
    }
    made = {
        name: planned(paths, root / name, options=options, **section)
        for name, (section, options) in variants.items()
    }
    run_gang(train_many, {"runs": list(made.values())}, root, TWO)
    return made


def of(run, name):
    return [record[name] for record in lines(run)]


def test_the_second_loss_stands_in_the_records(runs):
    for name in ("whole", "micro"):
        records = lines(runs[name])
        assert len(records) == 5 and min(of(runs[name], "ocr_loss")) > 0
        assert min(of(runs[name], "ocr_grad_norm")) > 0
    assert of(runs["micro"], "ocr_loss") == pytest.approx(of(runs["whole"], "ocr_loss"), rel=1e-5)
    assert of(runs["micro"], "loss") == pytest.approx(of(runs["whole"], "loss"), rel=1e-5)
    # Words that are given, and not asked for, change nothing.
    assert not [name for name in lines(runs["off"])[0] if name.startswith("ocr")]
    assert of(runs["off"], "loss")[0] == of(runs["whole"], "loss")[0]
    assert of(runs["off"], "loss")[-1] != of(runs["whole"], "loss")[-1]
    # What it weighs is no part of the number, and moves the encoder another way.
    assert of(runs["heavy"], "ocr_loss")[0] == of(runs["whole"], "ocr_loss")[0]
    assert of(runs["heavy"], "loss")[-1] != of(runs["whole"], "loss")[-1]
    shares = of(runs["whole"], "ocr_share")
    assert shares == pytest.approx(of(runs["micro"], "ocr_share"))
    # Whole images of a batch of twelve, of which a third have words.
    images = [12 * share for share in shares]
    assert images == pytest.approx([round(number) for number in images])
    assert 10 < sum(images) < 30


def test_the_description_names_the_head_and_its_words(runs, paths):
    about = json.loads((Path(runs["whole"]["output"]) / "encoder.json").read_text())
    assert about["heads"] == {"ocr": WORDS} and about["section"]["ocr_weight"] == 0.5
    assert len(about["made_from"]["ocr_labels"]) == 2
    plain = json.loads((Path(runs["off"]["output"]) / "encoder.json").read_text())
    assert "heads" not in plain and "ocr_labels" not in plain["made_from"]
    assert "ocr_weight" not in plain["section"]
    last = Checkpoint(checkpoint_of(runs["whole"], 5))
    assert last.heads == {"ocr": WORDS} and last.num_classes == CLASSES
    rows = last.rows(0, WORDS, "ocr")
    assert set(rows) == {"weight", "exp_avg", "exp_avg_sq", "row_step"}
    assert int(rows["row_step"].max()) > 0


def test_on_three_ranks_it_resumes_what_two_have_saved(tmp_path, paths, runs):
    three = Resources(ranks_per_node=3)
    run = continued(runs["whole"], planned(paths, tmp_path / "out", three, **SECOND), 2)
    run_gang(train_many, {"runs": [run]}, tmp_path, three)
    for name in ("loss", "ocr_loss", "ocr_share"):
        assert of(run, name) == pytest.approx(of(runs["whole"], name)[2:], rel=1e-5)


def test_a_killed_training_ends_with_the_same_bytes(tmp_path, paths, runs):
    section = {**VIT, **SECOND}
    options = [w for key, v in section.items() for w in (f"--{key.replace('_', '-')}", str(v))]
    options += ["--checkpoint-every", "1", "--keep", "99", "--threads", "1", "--workers", "0"]
    killed = tmp_path / "killed"
    kill_when(mlcd_train(paths, killed, *options), killed, 3)
    log = tmp_path / "log"
    process = mlcd_train(paths, killed, *options, log=log)
    end = time.monotonic() + 300
    assert process.wait(end - time.monotonic()) == 0, log.read_text()
    assert "resuming from step" in log.read_text()
    whole = runs["whole"]
    for name in ("encoder.safetensors", "encoder.json"):
        assert (killed / name).read_bytes() == Path(whole["output"], name).read_bytes(), name
    assert without_timing(lines(killed / "metrics.jsonl")) == without_timing(lines(whole))
    (folder,) = killed.glob("state/*/checkpoints/step_00000005")
    for path in checkpoint_of(whole, 5).iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name

"""Trainings with regions of images: rows of a step, ranks, micro-batches, resume, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from helpers.builders import labels_file
from helpers.region_stores import with_regions
from helpers.train_runs import TWO, checkpoint_of, lines, losses, planned, train, without_timing
from helpers.train_stores import CLASSES, arguments, stores, words_file
from mlcd.config.train import Train
from mlcd.data import hdf5
from mlcd.data.embeddings import KIND
from mlcd.data.labels import Labels
from mlcd.data.region_store import RegionStore
from mlcd.launch.api import run_gang
from mlcd.stages.train import fit, inputs, micro_batches
from mlcd.stages.train.images import Steps
from mlcd.stages.train.region_rows import RegionRows
from mlcd.training.crops import Augment
from mlcd.training.memory import need
from mlcd.training.read_ahead import batches
from mlcd.training.region_boxes import seen
from mlcd.training.shuffle import Order
from mlcd.utils.errors import UserError
from mlcd.utils.files import read_json

BOXES = {"regions": "boxes", "regions_per_image": 3, "batch_size": 16, "epochs": 1}
FILES = ("encoder.safetensors", "regions.safetensors", "encoder.json")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def paths(tmp_path_factory, plain):
    return with_regions(plain, tmp_path_factory.mktemp("regions"))


def checked(paths):
    names = ("labels", "embeddings", "images", "centroids", "region_embeddings", "region_labels")
    return inputs.check(*(paths[name] for name in names))


@pytest.fixture(scope="module")
def index(tmp_path_factory, paths):
    folder = tmp_path_factory.mktemp("index")
    inputs.build_index(checked(paths), folder)
    return folder


# ------------------------------------------------------------------------------- index, rows


def test_the_index_has_the_regions_of_each_image(index, paths):
    found = inputs.Index(index)
    regions = found.regions
    assert regions.start[0] == 0 and regions.start[-1] == len(regions.box) == len(regions.label)
    expected = {}
    for number, path in enumerate(paths["region_embeddings"]):
        store, labels = RegionStore(path), Labels(paths["region_labels"][number])
        digests = inputs.Embeddings(paths["embeddings"][number]).places().digest
        for row, image in enumerate(store.images().tolist()):
            item = store.boxes()[row].tolist(), labels.label()[row].tolist()
            expected.setdefault(int(digests[image]), []).append(item)
    for image, digest in enumerate(found.place["digest"].tolist()):
        start, stop = regions.start[image : image + 2]
        mine = zip(
            regions.box[start:stop].tolist(), regions.label[start:stop].tolist(), strict=True
        )
        assert list(mine) == expected.get(digest, [])
        assert regions.size[image].tolist() == ([48, 48] if stop > start else [0, 0])
    assert sum(map(len, expected.values())) == len(regions.box) > 50


def test_positives_take_the_first_labels_of_regions_too(tmp_path, paths):
    inputs.build_index(checked(paths), tmp_path / "index", 2)
    found = inputs.Index(tmp_path / "index")
    assert found.regions.label.shape == (len(found.regions.box), 2)


def steps(folder, *, count=3, rank=0, world_size=1, micro_batches=1, min_area=0.4):
    index = inputs.Index(folder)
    order = Order(index.counts, batch=8, block=4, window=16, seed=0)
    augment = Augment(24, min_area, True, 0)
    rows = RegionRows(index.regions, index.label, augment, count, (3, 3))
    return Steps(
        index, order, augment, rank=rank, world_size=world_size, micro_batches=micro_batches,
        regions=rows,
    )  # fmt: skip


def test_regions_have_no_words_of_their_images(index):
    found = inputs.Index(index)
    words = np.arange(2 * len(found.label), dtype=np.int32).reshape(-1, 2)
    augment, images = Augment(24, 0.4, True, 0), np.arange(len(found.label))
    plain = RegionRows(found.regions, found.label, augment, 3, (3, 3)).of(images, 0)
    both = np.hstack([found.label, words])
    boxes, labels = RegionRows(found.regions, both, augment, 3, (3, 3)).of(images, 0)
    assert np.array_equal(boxes, plain[0]) and np.array_equal(labels[:, :3], plain[1])
    assert labels.shape[1] == 5 and (labels[:, 3:] == -1).all()


def test_rows_are_the_images_and_then_regions_that_their_crops_show(index):
    found = inputs.Index(index)
    order = Order(found.counts, batch=8, block=4, window=16, seed=0)
    augment, kinds = Augment(24, 0.4, True, 0), set()
    for item in range(2 * order.steps_per_epoch):
        batch = steps(index)[item]
        epoch, step = divmod(item, order.steps_per_epoch)
        images = order.indices(epoch, step)
        assert batch.labels.shape == (8 + 8 * 3, 3)
        assert batch.labels[:8].tolist() == found.label[images].tolist()
        assert batch.boxes.whole == 8
        assert batch.boxes.owner.tolist() == np.repeat(np.arange(8), 3).tolist()
        for place, image in enumerate(images.tolist()):
            rows = slice(8 + 3 * place, 11 + 3 * place)
            box = batch.boxes.box[3 * place : 3 * place + 3].tolist()
            label = batch.labels[rows].tolist()
            start, stop = found.regions.start[image : image + 2]
            crop, flipped = augment.view(48, 48, epoch, image)
            shown, good = seen(
                found.regions.box[start:stop], (48, 48), crop, flipped=flipped, places=(3, 3)
            )
            able = [
                (one.tolist(), found.regions.label[start + number].tolist())
                for number, one in enumerate(shown) if good[number]
            ]  # fmt: skip
            if not able:
                assert box == [[0, 0, 1, 1]] * 3
                assert label == [found.label[image].tolist()] * 3
            mine = list(zip(box, label, strict=True))
            assert all(item in able for item in mine) or not able
            # Each once before any is repeated.
            assert len({tuple(one) for one, _ in mine}) == min(3, max(1, len(able)))
            kinds.add(len(able))
    assert kinds >= {0, 1, 2}


def test_rows_do_not_depend_on_workers_ranks_or_micro_batches(index):
    def rows(batch):
        box = batch.boxes
        regions = (
            box.box.reshape(box.whole, -1, 4),
            batch.labels[box.whole :].reshape(box.whole, -1, 3),
        )
        return batch.images, batch.labels[: box.whole], *regions

    whole = list(batches(steps(index), 3, 9, workers=0, pin=False))
    ahead = list(batches(steps(index), 3, 9, workers=2, pin=False))
    halves = list(batches(steps(index, micro_batches=2), 6, 18, workers=0, pin=False))
    ranks = [
        list(batches(steps(index, rank=rank, world_size=2), 3, 9, workers=0, pin=False))
        for rank in range(2)
    ]
    for i, batch in enumerate(whole):
        for parts in ([ahead[i]], halves[2 * i : 2 * i + 2], [ranks[0][i], ranks[1][i]]):
            for one, others in zip(rows(batch), zip(*map(rows, parts), strict=True), strict=True):
                assert torch.equal(one, torch.cat(others))


# ------------------------------------------------------------------------------- refusals


def test_files_that_do_not_belong_together_are_refused(paths, plain, tmp_path):
    def refused(message, **changed):
        with pytest.raises(UserError, match=message):
            checked({**paths, **changed})

    first, second = paths["region_embeddings"]
    refused("no --region-embeddings given for its chunk c-00001", region_embeddings=[first])
    refused("chunk 'c-00000' is given twice", region_embeddings=[first, first])
    refused("made from other regions than", region_labels=paths["region_labels"][:1] * 1 + [
        str(shutil.copy(paths["labels"][1], tmp_path / "c-00001.h5"))])  # fmt: skip
    foreign = tmp_path / "f.h5"
    embeddings = inputs.Embeddings(paths["region_embeddings"][0])
    rows = {"embedding": embeddings.read().astype(np.float16)}
    hdf5.write(foreign, KIND, rows, {"chunk": "c-00009"})
    labels_file(tmp_path / "l.h5", np.zeros((embeddings.n, 3)), CLASSES, foreign)
    refused("--region-labels: chunk l has no labels",
            region_labels=[*paths["region_labels"], str(tmp_path / "l.h5")])  # fmt: skip
    other = with_regions(stores(tmp_path / "s", sizes=(12, 9)), tmp_path / "r")
    refused("made from other embeddings than", region_embeddings=other["region_embeddings"])
    with pytest.raises(UserError, match=r"--region-embeddings: needed with train\.regions: boxes"):
        planned(plain, tmp_path / "a", **BOXES)
    with pytest.raises(UserError, match="--region-embeddings: nothing reads them"):
        planned(paths, tmp_path / "b", **{**BOXES, "regions": None})
    assert second


def test_the_memory_model_counts_regions_as_rows(tmp_path, paths):
    section = Train(model="mlcd_vit_tiny_patch8", **BOXES)
    few = section.changed(regions_per_image=1)

    def taken(section):
        job = fit.job(section, ranks=1, side=64, classes=1000, labels=3, memory_limit=None)
        footprint = fit.footprint_of(section, 64)
        return job, footprint.peak(16), need(job, footprint, 16).loss

    (job, *many), (_, *one) = taken(section), taken(few)
    assert job.rows == 4
    assert many[0] > one[0] and many[1] > one[1]
    assert taken(section.changed(regions=None))[0].rows == 1
    parsed = arguments(paths, tmp_path, ranks_per_node=1)
    assert micro_batches(parsed, section, 1) == ["auto", "auto"]


# ------------------------------------------------------------------------------- trainings


def train_and_resume(runs, whole, again):
    """Train `runs`, then `again` from the checkpoint of `whole` after 2 steps."""
    from mlcd.launch.process_group import process_group

    with process_group("cpu") as place:
        for run in runs:
            train(run, place)
        if place.is_main:
            shutil.copytree(checkpoint_of(whole, 2), checkpoint_of(again, 2))
        dist.barrier()
        train(again, place)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, paths, plain):
    root = tmp_path_factory.mktemp("runs")

    def one(name, given=paths, options=None, **section):
        return planned(given, root / name, options=options, **{**BOXES, **section})

    checked = {"checkpoint_every": 2}
    words = [with_words(path, root / "words" / Path(path).name) for path in plain["embeddings"]]
    made = {
        "whole": one("whole", options=checked),
        "accumulated": one("acc", options={"micro_batch": 4}),
        "workers": one("workers", options={"workers": 1}),
        "without": one("without", plain, regions=None),
        "words": one("words", {**paths, "ocr-labels": words}, ocr_weight=0.5),
        "words, micro": one("wordsm", {**paths, "ocr-labels": words}, {"micro_batch": 4},
                            ocr_weight=0.5),
        "words, without": one("wordsw", {**plain, "ocr-labels": words}, regions=None,
                              ocr_weight=0.5),
    }  # fmt: skip
    again = one("again", options=checked)
    arguments = {"runs": list(made.values()), "whole": made["whole"], "again": again}
    run_gang(train_and_resume, arguments, root, TWO)
    return {**made, "again": again}


def with_words(embeddings, output):
    """Give every second image of a chunk one of five words; return the file of labels."""
    row = np.arange(inputs.Embeddings(embeddings).n)[:, None]
    output.parent.mkdir(exist_ok=True)
    return words_file(output, np.where(row % 2, row % 5, -1), 5, embeddings)


def test_words_are_a_mean_over_images_whatever_regions_are_beside_them(runs):
    first, alone = lines(runs["words"])[0], lines(runs["words, without"])[0]
    assert first["loss"] != alone["loss"]
    assert 0 < first["ocr_share"] == alone["ocr_share"] < 1
    # The region layer is nothing to whole images: the same encoder sees them.
    for name in ("ocr_loss", "feature_cosine"):
        assert first[name] == pytest.approx(alone[name], rel=1e-5) != 0
    for name in ("ocr_loss", "ocr_share"):
        found = [[line[name] for line in lines(runs[run])] for run in ("words", "words, micro")]
        assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_regions_are_trained_and_the_layer_is_written(runs):
    found = losses(runs["whole"])
    assert len(found) == 4 and np.isfinite(found).all()
    assert found[0] != losses(runs["without"])[0]
    assert losses(runs["workers"]) == found
    assert losses(runs["accumulated"]) == pytest.approx(found, rel=1e-5)
    about = read_json(Path(runs["whole"]["output"], "encoder.json"))
    assert about["regions"]["file"] == "regions.safetensors"
    assert len(about["made_from"]["regions"]) == len(about["made_from"]["region_labels"]) == 2
    assert "regions" not in read_json(Path(runs["without"]["output"], "encoder.json"))["made_from"]


def test_a_resumed_run_ends_with_the_same_bytes(runs):
    whole, again = runs["whole"], runs["again"]
    assert without_timing(lines(again)) == without_timing(lines(whole))[2:]
    for file in FILES:
        assert Path(again["output"], file).read_bytes() == Path(whole["output"], file).read_bytes()

"""What training reads: the join of stores, the order of pictures, crops, rates, centres."""

import itertools
import json

import h5py
import numpy as np
import pytest
import torch
from builders import centroids_file, embeddings_file, image_store, labels_file, unit_vectors
from PIL import Image
from train_stores import CLASSES, arguments, stores

from mlcd.config.train import Train
from mlcd.errors import UserError
from mlcd.images import decode
from mlcd.launch import Resources
from mlcd.stores.centroids import Centroids
from mlcd.train import inputs, plan
from mlcd.train.centres import initial_rows, principal_axes
from mlcd.train.pictures import Augment, Steps, batches
from mlcd.train.schedule import phases
from mlcd.training.order import Order
from mlcd.training.schedule import factor

# ---------------------------------------------------------------------------------- order


def reference_epoch(tar_of, block, window, seed, epoch):
    """The epoch's order written plainly: blocks, shuffled; cut into windows; each shuffled."""
    blocks = []
    for _, members in itertools.groupby(range(len(tar_of)), key=lambda index: tar_of[index]):
        members = list(members)
        blocks += [members[start : start + block] for start in range(0, len(members), block)]
    order = np.random.default_rng([seed, 1, epoch]).permutation(len(blocks))
    sequence = list(itertools.chain.from_iterable(blocks[b] for b in order))
    result = []
    for w, start in enumerate(range(0, len(sequence), window)):
        part = np.array(sequence[start : start + window])
        rng = np.random.default_rng([seed, 2, epoch, w])
        result += part[rng.permutation(len(part))].tolist()
    return result


@pytest.mark.parametrize("block, window", [(4, 16), (3, 10), (1, 7), (100, 1000), (5, 5)])
@pytest.mark.parametrize("epoch", [0, 3])
def test_order_equals_the_plain_one(block, window, epoch):
    tars = np.repeat(np.arange(6), [9, 1, 13, 7, 9, 5])
    order = Order(np.bincount(tars), batch=8, block=block, window=window, seed=5)
    got = np.concatenate([order.indices(epoch, step) for step in range(order.steps_per_epoch)])
    expected = reference_epoch(tars, block, window, 5, epoch)[: len(got)]
    assert got.tolist() == expected
    assert len(got) == len(tars) // 8 * 8 and len(set(got.tolist())) == len(got)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_divide_the_same_global_batch(world_size):
    order = Order(np.full(10, 11), batch=12, block=4, window=24, seed=1)
    for step in range(order.steps_per_epoch):
        parts = [order.indices(2, step, rank, world_size) for rank in range(world_size)]
        assert {len(part) for part in parts} == {12 // world_size}
        assert np.concatenate(parts).tolist() == order.indices(2, step).tolist()


def test_order_is_global_over_tars_and_reads_few_runs():
    tars = np.repeat(np.arange(40), 50)
    order = Order(np.bincount(tars), batch=40, block=10, window=400, seed=0)
    first = np.concatenate([order.indices(epoch, 0) for epoch in range(20)])
    assert len(np.unique(tars[first])) == 40
    assert len({tuple(order.indices(epoch, 0)) for epoch in range(20)}) == 20
    # A window of 400 pictures is 40 runs of 10 neighbours, not 400 single reads.
    runs = order.runs(0, 0)
    assert sum(stop - start for start, stop in runs) == 400 and len(runs) == 40
    members = np.concatenate([order.indices(0, step) for step in range(10)])
    assert set(members.tolist()) == {i for start, stop in runs for i in range(start, stop)}


# ---------------------------------------------------------------------------------- join


def check(paths):
    return inputs.check(paths["labels"], paths["embeddings"], paths["images"], paths["centroids"])


def test_index_holds_every_labelled_picture_in_the_order_of_the_tars(tmp_path):
    paths = stores(tmp_path)
    assert inputs.build_index(check(paths), tmp_path / "index") == 64
    index = inputs.Index(tmp_path / "index")
    assert index.counts.tolist() == [9, 9, 9, 9, 4, 9, 9, 6] and len(index.tars) == 5 + 3
    seen = []
    for chunk in range(2):
        with h5py.File(paths["labels"][chunk]) as file:
            seen.append(file["label"][:])
    assert np.array_equal(index.label, np.concatenate(seen))
    with h5py.File(paths["embeddings"][1]) as file:
        place = index.place[40:]
        assert np.array_equal(place["offset"], file["offset"][:])
        assert np.array_equal(place["tar"], file["tar"][:] + 5)
    # The order of options does not matter.
    shuffled = {name: p if isinstance(p, str) else p[::-1] for name, p in paths.items()}
    inputs.build_index(check(shuffled), tmp_path / "again")
    for name in ("place.bin", "label.bin"):
        assert (tmp_path / "index" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_pictures_without_a_label_are_left_out(tmp_path):
    paths = stores(tmp_path)
    labels = np.full((24, 3), -1)
    labels[5] = [3, -1, -1]
    labels_file(tmp_path / "labels" / "c-00001.h5", labels, CLASSES, paths["embeddings"][1])
    assert inputs.build_index(check(paths), tmp_path / "index") == 41


def test_stale_files_are_refused_by_name(tmp_path):
    paths = stores(tmp_path)
    image_store(tmp_path / "images" / "c-00001", 24, rows_per_tar=9, seed=77)
    with pytest.raises(UserError, match=r"embeddings/c-00001\.h5: made from other pictures"):
        check(paths)
    vectors = unit_vectors(24, 16, seed=50)
    embeddings_file(
        tmp_path / "embeddings" / "c-00001.h5", vectors,
        manifest=tmp_path / "images" / "c-00001" / "manifest.json",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"labels/c-00001\.h5: made from other embeddings"):
        check(paths)


def test_missing_double_and_foreign_files_are_refused(tmp_path):
    paths = stores(tmp_path)
    with pytest.raises(UserError, match="c-00001 has no labels"):
        check({**paths, "labels": paths["labels"][:1]})
    with pytest.raises(UserError, match=r"labels/c-00001\.h5: no --images given"):
        check({**paths, "images": paths["images"][:1]})
    with pytest.raises(UserError, match="given twice"):
        check({**paths, "labels": paths["labels"] * 2})
    centroids_file(tmp_path / "other.h5", unit_vectors(CLASSES + 1, 16))
    with pytest.raises(UserError, match=r"12 classes, but .*other\.h5 has 13"):
        check({**paths, "centroids": str(tmp_path / "other.h5")})


@pytest.mark.parametrize(
    "section, options, expected",
    [
        ({"batch_size": 15}, {}, r"train.batch_size: 15 does not divide by 2"),
        ({"batch_size": 16}, {"micro_batch": 3}, r"--micro-batch: 3"),
        ({"batch_size": 128}, {}, r"only 64 have labels"),
        ({"batch_size": 16}, {"high_res_micro_batch": 3}, r"--high-res-micro-batch: 3"),
        ({"batch_size": 16}, {"keep": 0}, r"--keep"),
        ({"batch_size": 16}, {"memory_limit": "much"}, r"--memory-limit: 'much' is no size"),
        ({"model": "mixer_s32_224", "high_res_image_size": 96}, {}, r"^train.high_res_image_size"),
    ],
)
def test_plans_that_do_not_fit_are_refused(tmp_path, section, options, expected):
    paths = stores(tmp_path)
    with pytest.raises(UserError, match=expected):
        plan(arguments(paths, tmp_path / "out", **options), Train(**section),
             Resources(ranks_per_node=2))  # fmt: skip


# ---------------------------------------------------------------------------------- pictures


def steps(tmp_path, *, rank=0, world_size=1, micro_batches=1, side=24):
    index = inputs.Index(tmp_path / "index")
    order = Order(index.counts, batch=8, block=4, window=16,
                  seed=0)  # fmt: skip
    augment = Augment(side, 0.5, True, 0)
    return Steps(
        index, order, augment, rank=rank, world_size=world_size, micro_batches=micro_batches
    )


def test_batches_do_not_depend_on_workers_ranks_or_micro_batches(tmp_path):
    inputs.build_index(check(stores(tmp_path)), tmp_path / "index")
    whole = list(batches(steps(tmp_path), 5, 13, workers=0, pin=False))
    assert whole[0].images.shape == (8, 3, 24, 24) and whole[0].images.dtype == torch.uint8
    read_ahead = list(batches(steps(tmp_path), 5, 13, workers=2, pin=False))
    halves = [list(batches(steps(tmp_path, micro_batches=2), 10, 26, workers=0, pin=False))]
    ranks = [
        list(batches(steps(tmp_path, rank=rank, world_size=2), 5, 13, workers=0, pin=False))
        for rank in range(2)
    ]
    for i, batch in enumerate(whole):
        assert torch.equal(batch.images, read_ahead[i].images)
        pairs = (halves[0][2 * i : 2 * i + 2], [ranks[0][i], ranks[1][i]])
        for parts in pairs:
            assert torch.equal(batch.images, torch.cat([part.images for part in parts]))
            assert torch.equal(batch.labels, torch.cat([part.labels for part in parts]))


def test_pictures_and_labels_belong_together(tmp_path):
    """With crops of the whole picture and no flip, a batch is the decoded pictures themselves."""
    inputs.build_index(check(stores(tmp_path)), tmp_path / "index")
    dataset = steps(tmp_path, side=48)
    dataset._augment = Augment(48, 1.0, False, 0)
    index, order = dataset._index, dataset._order
    batch = dataset[3]
    for position, picture in enumerate(order.indices(0, 3)):
        tar, size, offset = index.place[picture].item()
        data = index.tars[tar].read_bytes()[offset : offset + size]
        expected = np.asarray(decode(data, max_pixels=10**6)).transpose(2, 0, 1)
        assert np.array_equal(batch.images[position].numpy(), expected)
        assert np.array_equal(batch.labels[position].numpy(), index.label[picture])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_does_not_decode_names_its_tar(tmp_path, workers):
    paths = stores(tmp_path)
    inputs.build_index(check(paths), tmp_path / "index")
    tar = tmp_path / "images" / "c-00000" / "00002.tar"
    tar.write_bytes(b"\0" * tar.stat().st_size)
    with pytest.raises(UserError, match=r"^\S*c-00000/00002\.tar: .*does not decode"):
        list(batches(steps(tmp_path), 0, 8, workers=workers, pin=False))


def test_crops_keep_their_area_and_differ_by_epoch_and_picture():
    gradient = np.arange(100, dtype=np.uint8)
    image = Image.fromarray(np.stack([np.tile(gradient, (80, 1))] * 3, axis=-1))
    augment = Augment(32, 0.25, True, 7)
    crops = {(e, i): augment(image, e, i).tobytes() for e in range(4) for i in range(4)}
    assert len(set(crops.values())) == 16
    assert crops[2, 3] == Augment(32, 0.25, True, 7)(image, 2, 3).tobytes()
    shares, flips = [], 0
    for index in range(300):
        rng = np.random.default_rng([7, 3, 0, index])
        left, top, right, bottom = augment._box(rng, 100, 80)
        assert 0 <= left < right <= 100 and 0 <= top < bottom <= 80
        assert 0.74 < (right - left) / (bottom - top) < 1.34
        shares.append((right - left) * (bottom - top) / 8000)
        row = augment(image, 0, index)[0, 16].astype(int)
        flips += row[-1] < row[0]
    assert min(shares) >= 0.249 and max(shares) > 0.85
    assert 110 < flips < 190


# ---------------------------------------------------------------------------------- the rest


def test_the_second_phase_has_a_schedule_of_its_own():
    section = Train(epochs=3, lr=1e-2, classifier_lr=1e-3, warmup_steps=5)
    (only,) = phases(section, 10)
    assert (only.first, only.last, only.image_size) == (0, 30, 64)
    section = section.model_copy(
        update={"high_res_image_size": 96, "high_res_epochs": 2, "high_res_lr": 1e-3}
    )
    first, second = phases(section, 10)
    assert first == only
    assert (second.first, second.last, second.image_size) == (30, 50, 96)
    assert second.lr == 1e-3 and second.classifier_lr == pytest.approx(1e-4)
    assert second.factor(34, section) == 1.0 and first.factor(29, section) < 0.01
    assert [second.factor(step, section) for step in range(30, 50)] == [
        factor(step, 20, 5, "cosine") for step in range(20)
    ]


def test_learning_rates():
    rates = [factor(step, 100, 10, "cosine") for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 == max(rates)
    assert rates[55] == pytest.approx(0.5) and 0 < rates[99] < 0.001
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[9:]))
    assert factor(55, 100, 10, "linear") == pytest.approx(0.5)
    assert factor(99, 100, 10, "constant") == 1.0
    # A run shorter than its warm-up still reaches the peak.
    assert max(factor(step, 4, 2000, "cosine") for step in range(4)) == 1.0


def test_initial_centres(tmp_path):
    vectors = unit_vectors(50, 20, seed=3)
    centroids_file(tmp_path / "c.h5", vectors)
    centroids = Centroids(tmp_path / "c.h5")
    same = initial_rows(centroids, 20, 10, 15, seed=0)
    assert np.allclose(same, vectors[10:15], atol=1e-6)
    wider = initial_rows(centroids, 32, 0, 50, seed=0).numpy()
    assert np.allclose(wider @ wider.T, vectors @ vectors.T, atol=1e-5)
    narrower = initial_rows(centroids, 6, 0, 50, seed=0).numpy()
    # Reference: principal components by singular value decomposition; cosines know no signs.
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    basis = np.linalg.svd(centred, full_matrices=False)[2][:6]
    expected = centred @ basis.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(narrower @ narrower.T, expected @ expected.T, atol=1e-5)
    assert np.array_equal(narrower[7:9], initial_rows(centroids, 6, 7, 9, seed=0).numpy())
    _, axes = principal_axes(iter([vectors[:30], vectors[30:]]), 6)
    assert (axes[np.abs(axes).argmax(0), np.arange(6)] > 0).all()


def test_a_centre_without_direction_gets_one(tmp_path):
    centroids_file(tmp_path / "c.h5", np.tile(unit_vectors(1, 8), (3, 1)))
    rows = initial_rows(Centroids(tmp_path / "c.h5"), 4, 0, 3, seed=0).numpy()
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert abs(rows[0] @ rows[1]) < 0.999


def test_index_records_no_label_at_all(tmp_path):
    paths = stores(tmp_path, sizes=(6,))
    labels_file(tmp_path / "labels" / "c-00000.h5", np.full((6, 2), -1), CLASSES,
                paths["embeddings"][0])  # fmt: skip
    with pytest.raises(UserError, match="no picture has a label"):
        inputs.build_index(check(paths), tmp_path / "index")
    assert json.loads((tmp_path / "index" / "index.json").read_text()) == {"l": 2, "counts": [0]}

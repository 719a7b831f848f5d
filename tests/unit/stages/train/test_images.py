"""What training reads: batches, images with their labels, how tars are read."""

import os

import numpy as np
import pytest
import torch

from helpers import mounts, small_shared_memory
from helpers.train_stores import stores
from mlcd.data.decode import BadImage, decode
from mlcd.stages.train import inputs
from mlcd.stages.train.images import Steps
from mlcd.training import crops, read_ahead
from mlcd.training.crops import Augment
from mlcd.training.read_ahead import batches
from mlcd.training.shuffle import Order
from mlcd.utils.errors import UserError


def check(paths):
    return inputs.check(paths["labels"], paths["embeddings"], paths["images"], paths["centroids"])


def steps(tmp_path, *, rank=0, world_size=1, micro_batches=1, side=24, by_place=False):
    index = inputs.Index(tmp_path / "index")
    order = Order(index.counts, batch=8, block=4, window=16, seed=0, by_place=by_place)
    augment = Augment(side, 0.5, True, 0)
    return Steps(
        index, order, augment, rank=rank, world_size=world_size, micro_batches=micro_batches
    )


def test_batches_do_not_depend_on_workers_ranks_or_micro_batches(tmp_path):
    inputs.build_index(check(stores(tmp_path)), tmp_path / "index")
    whole = list(batches(steps(tmp_path), 5, 13, workers=0, pin=False))
    assert whole[0].images.shape == (8, 3, 24, 24) and whole[0].images.dtype == torch.uint8
    ahead = list(batches(steps(tmp_path), 5, 13, workers=2, pin=False))
    halves = [list(batches(steps(tmp_path, micro_batches=2), 10, 26, workers=0, pin=False))]
    ranks = [
        list(batches(steps(tmp_path, rank=rank, world_size=2), 5, 13, workers=0, pin=False))
        for rank in range(2)
    ]
    for i, batch in enumerate(whole):
        assert torch.equal(batch.images, ahead[i].images)
        pairs = (halves[0][2 * i : 2 * i + 2], [ranks[0][i], ranks[1][i]])
        for parts in pairs:
            assert torch.equal(batch.images, torch.cat([part.images for part in parts]))
            assert torch.equal(batch.labels, torch.cat([part.labels for part in parts]))


def test_images_and_labels_belong_together(tmp_path):
    """With crops of the whole image and no flip, a batch is the decoded images themselves."""
    inputs.build_index(check(stores(tmp_path)), tmp_path / "index")
    dataset = steps(tmp_path, side=48)
    dataset._augment = Augment(48, 1.0, False, 0)
    index, order = dataset._index, dataset._order
    batch = dataset[3]
    for position, image in enumerate(order.indices(0, 3)):
        tar, size, offset, _ = index.place[image].item()
        data = index.tars[tar].read_bytes()[offset : offset + size]
        expected = np.asarray(decode(data, max_pixels=10**6)).transpose(2, 0, 1)
        assert np.array_equal(batch.images[position].numpy(), expected)
        assert np.array_equal(batch.labels[position].numpy(), index.label[image])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_changed_or_does_not_decode_names_its_tar(tmp_path, workers, monkeypatch):
    paths = stores(tmp_path)
    inputs.build_index(check(paths), tmp_path / "index")
    tar = tmp_path / "images" / "c-00000" / "00002.tar"
    whole = tar.read_bytes()
    tar.write_bytes(b"\0" * len(whole))
    with pytest.raises(UserError, match=r"^\S*c-00000/00002\.tar: .* not the one that was downl"):
        list(batches(steps(tmp_path), 0, 8, workers=workers, pin=False))
    tar.write_bytes(whole)

    def refuse(data, max_pixels):
        raise BadImage("damaged", "for the test")

    monkeypatch.setattr(crops, "Encoded", refuse)
    with pytest.raises(UserError, match=r"^\S*c-0000\d/\d{5}\.tar: .*does not decode"):
        list(batches(steps(tmp_path), 0, 8, workers=workers, pin=False))


@pytest.mark.parametrize("piece", [3, 5, 8])
def test_micro_batches_are_put_together_from_pieces_of_any_size(tmp_path, monkeypatch, piece):
    """Far more pieces than the ring has slots, so that each slot is written again and again."""
    monkeypatch.setattr(read_ahead, "_PIECE", piece)
    inputs.build_index(check(stores(tmp_path)), tmp_path / "index")
    whole = steps(tmp_path)
    for item, batch in enumerate(batches(steps(tmp_path), 0, 20, workers=2, pin=False)):
        assert torch.equal(batch.images, whole[item].images)
        assert torch.equal(batch.labels, whole[item].labels)
    assert item == 19


def test_the_ring_is_small_whatever_the_micro_batch(tmp_path):
    """A micro-batch of 2,048 images of 224 pixels takes 308 MB. Workers hold some tens of them."""
    inputs.build_index(check(stores(tmp_path)), tmp_path / "index")
    dataset = steps(tmp_path, side=224)
    dataset.images = 2048
    pieces = read_ahead.Pieces(dataset, slots=9)
    assert pieces.ring.nbytes == 9 * 32 * 3 * 224 * 224
    assert [pieces.place(item) for item in (0, 63, 64)] == [
        (0, range(32)), (0, range(2016, 2048)), (1, range(32)),
    ]  # fmt: skip


def test_little_shared_memory_is_enough_and_none_is_told(tmp_path):
    """A container's /dev/shm of 1 MB that others have filled: batches do not lie in it."""
    if why := mounts.missing():
        pytest.skip(why)
    done = mounts.run_on(
        "mount -t tmpfs -o size=1m tmpfs /dev/shm", small_shared_memory.__file__, tmp_path
    )
    assert done.returncode == 0, done.stderr
    read, told = done.stdout.splitlines()
    assert read == f"{4 * 32 * 3 * 64 * 64} bytes read"
    assert told.startswith("/dev/shm: ")


def advised(monkeypatch, run):
    """Return the bytes of files that were announced while `run` ran."""
    spans, announce = [], os.posix_fadvise

    def record(handle, start, length, advice):
        spans.append(length)
        announce(handle, start, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", record)
    run()
    return sum(spans)


def test_a_machine_asks_for_each_block_once_and_for_its_own_images_only(tmp_path, monkeypatch):
    inputs.build_index(check(stores(tmp_path)), tmp_path / "index")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    whole = 0
    for rank in range(2):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        dataset = steps(tmp_path, rank=rank, world_size=2)
        whole += advised(monkeypatch, lambda: [dataset[item] for item in (0, 1)])  # noqa: B023
    index, order = dataset._index, dataset._order
    runs = order.runs(0, 0)
    ends = [[index.place[at] for at in (first, last - 1)] for first, last in runs]
    assert whole == sum(int(b["offset"] + b["size"] - a["offset"]) for a, b in ends)
    # Two machines of one rank each: images, and what lies between two of them.
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr("mlcd.data.tars._GAP", 0)
    dataset = steps(tmp_path, rank=1, world_size=2)
    own = advised(monkeypatch, lambda: dataset.advise(3, range(4)))
    assert own == index.place["size"][order.indices(0, 3, 1, 2)].sum()
    assert advised(monkeypatch, lambda: dataset[3]) == 0


def test_shares_by_place_are_the_same_batch(tmp_path):
    inputs.build_index(check(stores(tmp_path)), tmp_path / "index")
    plain, sorted_ = steps(tmp_path), steps(tmp_path, by_place=True)
    for item in (0, 9):
        rows = plain._rows(item)
        shares = [steps(tmp_path, rank=r, world_size=2, by_place=True)._rows(item) for r in (0, 1)]
        assert np.concatenate(shares).tolist() == sorted(rows) == sorted_._rows(item).tolist()
        at = np.argsort(rows)
        assert torch.equal(plain[item].images[at], sorted_[item].images)
        assert torch.equal(plain[item].labels[at], sorted_[item].labels)

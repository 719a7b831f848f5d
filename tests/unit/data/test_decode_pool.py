"""The pool of decoding workers."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.decoders import Lengths, Marking
from mlcd.data.decode_pool import DecodePool, ImageLocation
from mlcd.data.tars import digest_of
from mlcd.utils.errors import UserError

torch.set_num_threads(1)


def blobs(path: Path, items: list[bytes]) -> list[ImageLocation]:
    path.write_bytes(b"".join(items))
    offsets = np.cumsum([0, *map(len, items)])
    digests = [digest_of(item) for item in items]
    return [(str(path), int(offsets[i]), len(item), digests[i]) for i, item in enumerate(items)]


def test_pool_keeps_order_and_counts_each_trouble(tmp_path):
    items = [bytes([97 + row % 26]) * (row + 1) for row in range(30)]
    places = blobs(tmp_path / "blob", items)
    batches = [places[start : start + 7] for start in range(0, 30, 7)]
    with DecodePool(Lengths(), 2, timeout=1) as pool:
        results = list(pool.batches([[], *batches]))
        processes = [worker.process for worker in pool._workers]
    assert not any(process.is_alive() for process in processes)
    assert [len(batch.found) for batch in results] == [0, *map(len, batches)]
    words = {98: "damaged", 104: "timeout", 107: "crashed"}
    expected = [words.get(item[0], [len(item)]) for item in items]
    flat = [item for batch in results for item in batch.found]
    assert [item if isinstance(item, str) else item.tolist() for item in flat] == expected


def test_tar_that_cannot_be_read_is_not_the_images_fault(tmp_path):
    for place in (
        (str(tmp_path / "away.tar"), 0, 5, 0),
        (*blobs(tmp_path / "b", [b"x"])[0][:2], 5, 0),
    ):
        with (
            DecodePool(Lengths(), 1) as pool,
            pytest.raises(UserError, match=r"(away.tar|shorter than expected).*rerun download"),
        ):
            list(pool.batches([[place]]))


def test_workers_decode_while_the_caller_is_busy_with_a_batch(tmp_path):
    """Two batches ahead, and no more: what a slow encoder has not taken stays in the ring."""
    marks = tmp_path / "marks"
    marks.mkdir()
    places = blobs(tmp_path / "blob", [bytes([row]) for row in range(40)])
    batches = [places[start : start + 8] for start in range(0, 40, 8)]
    with DecodePool(Marking(str(marks)), 2, ring=(8, 2, 2)) as pool:
        stream = pool.batches(batches)
        first = next(stream)
        until = time.monotonic() + 100
        while not all((marks / str(row)).exists() for row in range(24)):
            assert time.monotonic() < until, "decoding waits for the caller"
            time.sleep(0.01)
        assert not any((marks / str(row)).exists() for row in range(24, 40))
        assert first.pixels()[:, 0, 0, 0].tolist() == list(range(8))
        rest = [batch.pixels()[:, 1, 1, 2].tolist() for batch in stream]
    assert rest == [list(range(start, start + 8)) for start in range(8, 40, 8)]


def test_pixels_lie_in_the_ring_and_failed_images_are_left_out(tmp_path):
    places = blobs(tmp_path / "blob", [b"a", b"b", b"z", b"c", b"z"])
    with DecodePool(Marking(str(tmp_path)), 1, ring=(3, 2, 2)) as pool:
        found = []
        for batch in pool.batches([places[:2], places[2:4], places[4:], []]):
            whole = not any(batch.reasons())
            pixels = batch.pixels() if not all(batch.reasons()) else np.zeros((0, 2, 2, 3))
            assert (pixels is batch.ring) == (whole and bool(batch.found))
            found.append((batch.reasons(), pixels[:, 0, 0, 0].tolist()))
    assert found == [
        (["", ""], [97, 98]), (["damaged", ""], [99]), (["damaged"], []), ([], []),
    ]  # fmt: skip


def test_a_caller_who_stops_leaves_no_thread(tmp_path):
    places = blobs(tmp_path / "blob", [b"a"] * 30)
    before = threading.active_count()
    with DecodePool(Lengths(), 1) as pool:
        stream = pool.batches([places[start : start + 3] for start in range(0, 30, 3)])
        next(stream)
    assert threading.active_count() == before
    with DecodePool(Lengths(), 1) as pool, pytest.raises(ZeroDivisionError):
        next(pool.batches(places[: 1 // (row - 1)] for row in range(1, 3)))

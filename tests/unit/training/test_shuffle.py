"""The order of images in an epoch."""

import itertools

import numpy as np
import pytest

from mlcd.training.shuffle import Order, step_of


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
    # A window of 400 images is 40 runs of 10 neighbors, not 400 single reads.
    runs = order.runs(0, 0)
    assert sum(stop - start for start, stop in runs) == 400 and len(runs) == 40
    members = np.concatenate([order.indices(0, step) for step in range(10)])
    assert set(members.tolist()) == {i for start, stop in runs for i in range(start, stop)}


def test_shares_by_place_touch_a_node_s_part_of_the_blocks():
    """The preset's numbers: 10 nodes, blocks of 256 images, windows of 65,536, steps of 32,768."""
    sizes = np.full(200, 10_000)
    blocks = {}
    for by_place in (False, True):
        order = Order(sizes, batch=32_760, block=256, window=65_536, seed=0, by_place=by_place)
        mine = order.indices(0, 3, 4, 10)
        blocks[by_place] = len(
            {(index // 10_000, index % 10_000 // 256) for index in mine.tolist()}
        )
    assert blocks == {False: 262, True: 27}


@pytest.mark.parametrize("block, window", [(4, 16), (3, 10), (100, 1000), (5, 5)])
@pytest.mark.parametrize("by_place", [False, True])
def test_the_step_that_sees_an_image_is_found(block, window, by_place):
    counts = np.array([9, 0, 13, 7, 9, 5])
    order = Order(counts, batch=8, block=block, window=window, seed=5, by_place=by_place)
    for epoch in (0, 2):
        seen = {
            int(index): step
            for step in range(order.steps_per_epoch)
            for index in order.indices(epoch, step)
        }
        assert len(seen) == 40
        for index in range(order.n):
            assert step_of(order, epoch, index) == seen.get(index)

"""How many processes read a rank's images."""

from __future__ import annotations

import pytest

from mlcd.launch.options import Resources
from mlcd.stages.train import _workers
from mlcd.utils.errors import UserError


@pytest.mark.parametrize(
    ("asked", "threads", "gpus", "expected"),
    [(None, 12, True, 11), (None, 1, True, 1), (None, 12, False, 1), (3, 12, True, 3),
     (0, 12, True, 0)],
)  # fmt: skip
def test_a_gpus_rank_reads_with_all_cores_but_one(asked, threads, gpus, expected):
    assert _workers(asked, Resources(threads=threads, gpus=gpus)) == expected


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match=r"--workers: expected at least 0.*got -1"):
        _workers(-1, Resources())

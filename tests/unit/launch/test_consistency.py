"""The start-up check: what differs between ranks is named, with the rank and its host."""

from __future__ import annotations

import pytest

from helpers.local_gangs import together
from mlcd.launch import consistency
from mlcd.launch.api import run_gang
from mlcd.launch.options import Resources
from mlcd.utils.errors import UserError


def test_a_rank_that_sees_another_file_stops_the_gang(tmp_path):
    (tmp_path / "disk2").mkdir()
    path = tmp_path / "centroids.h5"
    for target in (path, tmp_path / "disk2" / path.name):
        target.write_bytes(b"same")
    two = Resources(ranks_per_node=2)
    assert run_gang(together, {"inputs": [str(path)]}, tmp_path / "a", two) == 2
    (tmp_path / "disk2" / path.name).write_bytes(b"old!")
    with pytest.raises(UserError) as caught:
        run_gang(together, {"inputs": [str(path)]}, tmp_path / "b", two)
    assert str(caught.value) == (
        f"{path}: rank 1 on node2 sees another content; put it on a disk that all nodes share"
    )


def four(**changes) -> list[dict]:
    """Return the facts of four ranks, the third changed."""
    alike = {"python": "3.11.7", "torch": "2", "numpy": "2", "code": "a", "device": "cpu",
             "inputs": {"x.h5": "1"}, "clock": 100.0}  # fmt: skip
    found = [{"host": f"node{rank}", **alike} for rank in range(4)]
    found[2] = {**found[2], **changes}
    return found


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, ""),
        ({"clock": 104.0}, ""),
        ({"clock": 160.0}, "rank 2 on node2: its clock is 60 s ahead of others; set its time"),
        ({"clock": 10.0}, "rank 2 on node2: its clock is 90 s behind others; set its time"),
        ({"torch": "1"}, "rank 2 on node2 has torch 1, others have 2; give all nodes the same"),
        ({"code": "b"}, "rank 2 on node2 has code b, others have a; install one version"),
        ({"device": "A100"}, "rank 2 on node2 has device A100, others have cpu; ask for nodes"),
        ({"inputs": {"x.h5": "missing"}}, "x.h5: rank 2 on node2 does not see it; put it on"),
    ],
)
def test_the_odd_rank_is_named(changes, expected):
    assert consistency.difference(four(**changes)).startswith(expected)
    assert expected or consistency.difference(four(**changes)) == ""


def test_long_lists_of_inputs_are_looked_at_here_and_there():
    paths = [f"{number}.tar" for number in range(1000)]
    chosen = consistency._some(paths)
    assert len(chosen) <= 64
    assert chosen[0] == "0.tar"
    assert int(chosen[-1].split(".")[0]) > 900

"""The plan of chunks."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pyarrow as pa
import pytest

from helpers.url_lists import parquet, urls
from mlcd.data.url_lists import plan
from mlcd.utils.errors import UserError


def test_plan_names_chunks_in_order_and_refuses_what_is_empty(tmp_path):
    first = parquet(tmp_path / "b.parquet", {"url": urls(5)})
    second = tmp_path / "a.snappy.txt"
    second.write_text("\n".join(urls(4)))
    lists = [str(first), str(second)]
    assert {name: chunk[:3] for name, chunk in plan(lists, 2).items()} == {
        "b-00000": (lists[0], 0, 2),
        "b-00001": (lists[0], 1, 2),
        "b-00002": (lists[0], 2, 1),
        "a-00000": (lists[1], 0, 2),
        "a-00001": (lists[1], 1, 2),
    }
    assert list(plan(lists, 2)) == [*(f"b-0000{i}" for i in range(3)), "a-00000", "a-00001"]
    # One more list leaves the others' chunks alone.
    third = str(parquet(tmp_path / "c.parquet", {"url": urls(1)}))
    assert plan([third, *lists], 2).items() >= plan(lists, 2).items()
    # A pattern names its files in sorted order.
    assert plan([f"{tmp_path}/[bc].parquet"], 2) == plan([lists[0], third], 2)
    with pytest.raises(UserError, match=r"none-\*\.csv: no file is called so"):
        plan([f"{tmp_path}/none-*.csv"], 2)
    with pytest.raises(UserError, match=r"gone\.parquet: no such file"):
        plan([*lists, str(tmp_path / "gone.parquet")], 2)
    empty = parquet(tmp_path / "empty.parquet", {"url": pa.array([], pa.string())})
    with pytest.raises(UserError, match=r"empty\.parquet: this list has no rows"):
        plan([*lists, str(empty)], 2)
    with pytest.raises(UserError, match="rename one"):
        plan([lists[0], lists[0]], 2)
    odd = parquet(tmp_path / "my list;rm -rf.parquet", {"url": urls(1)})
    with pytest.raises(UserError, match="rename the file"):
        plan([str(odd)], 2)
    many = tmp_path / "many.txt"
    many.write_text("x\n" * 100_001)
    with pytest.raises(UserError, match=r"raise prepare\.chunk_rows"):
        plan([str(many)], 1)


def test_plan_is_light_and_fast_for_hundreds_of_lists(tmp_path):
    for i in range(300):
        parquet(tmp_path / f"part-{i:05d}.parquet", {"url": urls(3)})
    script = (
        "import sys, glob, mlcd.data.url_lists\n"
        f"lists = sorted(glob.glob({str(tmp_path)!r} + '/*.parquet'))\n"
        "print(len(mlcd.data.url_lists.plan(lists, 2)))\n"
        "print(sorted({'torch', 'pandas', 'pydantic'} & set(sys.modules)))\n"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.stdout.splitlines() == ["600", "[]"]
    assert time.monotonic() - start < 10

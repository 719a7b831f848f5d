"""The list of a chunk: what is read, and what is refused by name."""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa
import pytest

from helpers.url_lists import bad_strings, write_list
from mlcd.config import Download
from mlcd.stages.download import run
from mlcd.stages.download.url_list import UrlList, requestable
from mlcd.utils.errors import UserError


def refusal(urls: Path, output: Path, **options: int) -> str:
    arguments = argparse.Namespace(
        top_up=False, urls=str(urls), output=str(output), **{"processes": 1, "threads": 2} | options
    )
    with pytest.raises(UserError) as error:
        run(arguments, Download())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unusable_lists_are_refused_by_name(tmp_path: Path) -> None:
    empty = write_list(tmp_path / "empty.parquet", url=pa.array([], pa.string()))
    assert "empty.parquet: holds no rows" in refusal(empty, tmp_path / "out")
    wrong = write_list(tmp_path / "wrong.parquet", link=["a"], text=["b"])
    assert "no column url among its columns (link, text)" in refusal(wrong, tmp_path / "out")
    numbers = write_list(tmp_path / "numbers.parquet", url=[1, 2])
    assert "column url holds int64" in refusal(numbers, tmp_path / "out")
    garbage = tmp_path / "garbage.parquet"
    garbage.write_bytes(b"not parquet at all, but long enough to look at")
    assert "garbage.parquet: not readable as parquet" in refusal(garbage, tmp_path / "out")
    assert "no such file" in refusal(tmp_path / "none.parquet", tmp_path / "out")
    good = write_list(tmp_path / "good.parquet", url=["http://127.0.0.1:9/a.jpg"])
    assert "is a file" in refusal(good, garbage)
    assert "--threads" in refusal(good, tmp_path / "out", threads=0)
    assert not (tmp_path / "out").exists()

    torn = write_list(tmp_path / "torn.parquet", url=[f"http://h/{row}" for row in range(999)])
    data = torn.read_bytes()
    torn.write_bytes(data[:100] + b"\xff" * 200 + data[300:])
    assert "torn.parquet: damaged" in refusal(torn, tmp_path / "out")


def test_list_is_read_in_batches_and_bad_bytes_are_replaced(tmp_path: Path) -> None:
    path = write_list(
        tmp_path / "a.parquet",
        url=[f"http://h/{i}" for i in range(5)],
        caption=bad_strings([b"fine", b"caf\xe9", b"", b"\xff\xfe", "né".encode()]),
        other=[1, 2, 3, 4, 5],
    )
    source = UrlList(path)
    batches = list(source.batches(2))
    assert source.rows == 5
    assert [batch.start for batch in batches] == [0, 2, 4]
    captions = [caption for batch in batches for caption in batch.captions]
    assert captions == ["fine", "caf�", "", "��", "né"]
    assert [hash for batch in batches for hash in batch.hashes] == [""] * 5
    nulls = write_list(tmp_path / "b.parquet", url=["http://h/", None], caption=pa.nulls(2))
    assert next(UrlList(nulls).batches(9))[1:] == (["http://h/", ""], ["", ""], ["", ""])


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://h/a%20b.jpg?x=1&y=[2]", "http://h/a%20b.jpg?x=1&y=[2]"),
        ("  https://h/a b.jpg\n", "https://h/a%20b.jpg"),
        ("http://h/é.jpg", "http://h/%C3%A9.jpg"),
        ("http://bücher.example:8080/é", "http://xn--bcher-kva.example:8080/%C3%A9"),
        ("http://h/../../etc/passwd", "http://h/../../etc/passwd"),
        ("file:///etc/passwd", None),
        ("ftp://h/a.jpg", None),
        ("data:image/png;base64,AAAA", None),
        ("http:///a.jpg", None),
        ("http://[::1/a.jpg", None),
        ("http://h:port/a.jpg", None),
        ("", None),
        ("no url", None),
    ],
)
def test_requestable(url: str, sent: str | None) -> None:
    assert requestable(url) == sent

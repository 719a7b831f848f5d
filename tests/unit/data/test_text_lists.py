"""Lists as programs write them: read right, or refused in one line; counted as they are read."""

from __future__ import annotations

import csv
import gzip
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.url_lists import NO_HASH, cut, parquet, prepare, urls
from mlcd.data.url_lists import count_rows, plan
from mlcd.stages.prepare.lists import read_rows
from mlcd.utils.errors import UserError

COLUMNS = {"url_column": "url", "caption_column": "caption", "hash_column": None}
CAPTIONS = [
    "plain", 'said "hi"', '"quoted"', "a\ttab", "two\nlines", "three\n\nlines", "comma, comma",
    "é ü 北京", " spaces ", "'", '""', '5" pipe', "12",
]  # fmt: skip


def rows(path: Path) -> list[tuple[str, str]]:
    """Return (url, caption) of every row, read in pieces of 3; their number must be the count."""
    count = count_rows(path)
    assert sum(chunk.rows for chunk in plan([str(path)], 3, COLUMNS).values()) == count
    found = [
        tuple((value or b"").decode() for value in row[:2])
        for start in range(0, count + 3, 3)
        for row in read_rows(path, COLUMNS, start, start + 3)
    ]
    assert len(found) == count
    return found


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        rows(path)
    line = str(error.value)
    assert path.name in line and "\n" not in line
    return line


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-sig", "utf-32"])
@pytest.mark.parametrize("kind", ["txt", "csv", "tsv"])
def test_encodings_and_line_ends(kind: str, encoding: str, end: str, tmp_path: Path) -> None:
    captions = ["a", "é 北", "c"] if kind != "txt" else [""] * 3
    lines = [
        url if kind == "txt" else f"{url},{c}" for url, c in zip(urls(3), captions, strict=True)
    ]
    if kind != "txt":
        lines = ['"url",caption', *lines]
    text = end.join([*lines, "", ""])
    text = text.replace(",", "\t") if kind == "tsv" else text
    data = (
        ("\ufeff" + text).encode("utf-16-be")
        if encoding[-6:] == "be-sig"
        else text.encode(encoding)
    )
    for ending in ("", ".gz"):
        path = tmp_path / f"list.{kind}{ending}"
        path.write_bytes(gzip.compress(data) if ending else data)
        assert rows(path) == list(zip(urls(3), captions, strict=True))


@pytest.mark.parametrize("order", [("url", "caption"), ("caption", "url")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_as_pandas_writes_it(
    kind: str, quoting: int, end: str, order: tuple[str, str], tmp_path: Path
) -> None:
    frame = pd.DataFrame({"url": urls(len(CAPTIONS)), "caption": CAPTIONS})[list(order)]
    path = tmp_path / f"list.{kind}"
    separator = "," if kind == "csv" else "\t"
    frame.to_csv(path, sep=separator, quoting=quoting, lineterminator=end, index=False)
    assert rows(path) == list(zip(urls(len(CAPTIONS)), CAPTIONS, strict=True))


@pytest.mark.parametrize("order", [("url", "caption"), ("caption", "url")])
@pytest.mark.parametrize(
    "captions",
    [
        ['"open', "b", 'c" closes'], ['"a', 'b"', "c"], ['"a" b', '"c', "d"], ['"', '"', '"'],
        ['"a', "b", "c"], ["a", "b", '"c'],
    ],
)  # fmt: skip
def test_quotes_of_a_tsv_that_obeys_none_are_quotes(
    captions: list[str], order: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "list.tsv"
    places = {"url": urls(3), "caption": captions}
    lines = [
        "\t".join(order),
        *("\t".join(row) for row in zip(*map(places.get, order), strict=True)),
    ]  # type: ignore[arg-type]
    path.write_text("\n".join(lines) + "\n")
    with caplog.at_level(logging.WARNING, logger="mlcd"):
        assert rows(path) == list(zip(urls(3), captions, strict=True))
    assert "fields begin with quotes that are not closed" in caplog.text


def test_an_open_quote_in_csv_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text('url,caption\nhttp://a.b/1,x\nhttp://a.b/2,"open\nhttp://a.b/3,y\n')
    assert "line 3: not readable as csv" in refusal(path)
    assert "never closed" in refusal(path)


def test_utf16_without_its_mark_and_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\n".join(urls(3)).encode("utf-16-le"))
    assert "zero bytes, as UTF-16" in refusal(path)
    path.write_bytes("\n".join(urls(3)).encode("utf-16")[:-1])
    assert "save it as UTF-8" in refusal(path)


def test_columns_that_are_missing_or_twice(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    twice = tmp_path / "list.csv"
    twice.write_text("url,url,caption\nhttp://a.b/1,x,c\n")
    assert "2 columns are called 'url'" in refusal(twice)
    table = pa.Table.from_arrays(
        [pa.array(urls(2))] * 2 + [pa.array(["a", "b"])], ["url", "url", "caption"]
    )
    pq.write_table(table, tmp_path / "twice.parquet")
    assert "2 columns are called 'url'" in refusal(tmp_path / "twice.parquet")
    assert "2 columns" in prepare(
        capsys, "--metadata", tmp_path / "twice.parquet", "--output", tmp_path / "u", *NO_HASH
    )
    bare = tmp_path / "bare.tsv"
    bare.write_text("http://a.b/1\tone\nhttp://a.b/2\ttwo\n")
    assert "no header, it holds a URL" in refusal(bare)
    other = tmp_path / "other.csv"
    other.write_text("url\tcaption\nhttp://a.b/1\tone\n")
    assert "no commas but tabs" in refusal(other)
    other.write_text("url;caption\nhttp://a.b/1;one\n")
    assert "no commas but semicolons" in refusal(other)


@pytest.mark.parametrize("column", [[1, 2], [["a"], ["b"]], [1.5, 2.5], [{"a": 1}, {"a": 2}]])
def test_captions_that_are_no_text_are_named_before_any_work(column: list, tmp_path: Path) -> None:
    path = parquet(tmp_path / "list.parquet", {"url": urls(2), "caption": column})
    line = refusal(path)
    assert "column 'caption' is of type" in line and "prepare.caption_column" in line
    assert "null" in line


def test_img2datasets_own_tables_are_no_lists(tmp_path: Path) -> None:
    columns = {name: ["a"] for name in ("caption", "key", "status", "error_message")}
    path = parquet(tmp_path / "00000.parquet", {"url": urls(1), **columns})
    assert rows(path) == [(urls(1)[0], "a")]
    (tmp_path / "00000.tar").write_bytes(b"")
    line = refusal(path)
    assert "img2dataset's record" in line and f"name {tmp_path / '00000.tar'} or its folder" in line


def test_empty_lines_are_no_rows(tmp_path: Path) -> None:
    for kind, head, separator in (
        ("txt", "", ""),
        ("csv", "url,caption\n", ","),
        ("tsv", "url\tcaption\n", "\t"),
    ):
        for gap in ("\n", "\r\n", "\n\n\n"):
            path = tmp_path / f"list.{kind}"
            body = "".join(f"{url}{separator}\n{gap}" for url in urls(4))
            path.write_text(gap + head + gap + body, newline="")
            assert [url for url, _ in rows(path)] == urls(4)


def test_counts_agree_with_reading_on_any_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    alphabet = np.frombuffer(b'ab",\t\n\r\xff ', np.uint8)
    for number in range(400):
        kind = ("csv", "tsv", "txt")[number % 3]
        path = tmp_path / f"{number}.{kind}"
        head = {"csv": b"url,caption\n", "tsv": b"url\tcaption\n", "txt": b""}[kind]
        path.write_bytes(head + rng.choice(alphabet, 60).tobytes())
        try:
            count = count_rows(path)
        except UserError:
            continue
        assert len(list(read_rows(path, COLUMNS, 0, 10**6))) == count


def test_captions_of_pandas_reach_the_chunk(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "list.tsv"
    pd.DataFrame({"caption": CAPTIONS, "url": urls(len(CAPTIONS))}).to_csv(
        path, sep="\t", index=False
    )
    kept, about = cut(capsys, path, *NO_HASH)
    assert [row["caption"] for row in kept] == CAPTIONS
    assert about["counts"]["kept"] == len(CAPTIONS)
    assert about["stop"] == len(CAPTIONS)

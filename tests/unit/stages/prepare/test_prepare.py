"""Stage prepare: every kind of list, every hostile row, equal bytes."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.url_lists import NO_HASH, cut, parquet, prepare, urls
from mlcd.data.url_lists import chunk_name, count_rows

SHA = hashlib.sha256(b"image").hexdigest()


def text_list(kind: str, links: list[str], captions: list[str]) -> bytes:
    """Return a list as csv with quotes where needed, tsv without, or txt; gzipped for .gz."""
    rows = [("other", "caption", "url")]
    rows += [("1", *pair) for pair in zip(captions, links, strict=True)]
    if kind.startswith("txt"):
        text = "\n".join(links)  # no newline at the end: still a line
    elif kind.startswith("tsv"):
        text = "".join("\t".join(row) + "\n" for row in rows)
    else:
        buffer = io.StringIO()
        csv.writer(buffer).writerows(rows)
        text = buffer.getvalue()
    return gzip.compress(text.encode()) if kind.endswith("gz") else text.encode()


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "txt", "csv.gz", "tsv.gz", "txt.gz"])
def test_every_format_gives_the_same_chunks(kind, tmp_path, capsys):
    path = tmp_path / f"list.{kind}"
    links = urls(23)
    captions = [f'a "quoted", caption {i}' for i in range(23)]
    if kind == "parquet":
        parquet(path, {"other": [1] * 23, "caption": captions, "url": links}, row_group_size=4)
    else:
        path.write_bytes(text_list(kind, links, captions))
    assert count_rows(path) == 23
    options = ["--chunk-rows", "10", *NO_HASH]
    found = [cut(capsys, path, *options, index=index) for index in range(3)]
    assert [row["url"] for rows, _ in found for row in rows] == links
    assert [[row["row"] for row in rows] for rows, _ in found] == [
        list(range(n)) for n in (10, 10, 3)
    ]
    assert [(about["start"], about["stop"], about["rows"]) for _, about in found] == [
        (0, 10, 10), (10, 20, 10), (20, 23, 3),
    ]  # fmt: skip
    if not kind.startswith("txt"):
        assert [row["caption"] for rows, _ in found for row in rows] == captions
    # All at once: the same bytes.
    assert prepare(capsys, "--metadata", path, "--output", tmp_path / "all", *options) == ""
    for index in range(3):
        for ending in ("parquet", "json"):
            name = f"{chunk_name(path, index)}.{ending}"
            assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "urls" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == sorted(
        f"list-0000{i}.{ending}" for i in range(3) for ending in ("parquet", "json")
    )


def test_hostile_rows_are_counted_and_the_rest_numbered_densely(tmp_path, capsys):
    good = "http://example.org/good.jpg"
    rows = [
        (good, "first", SHA),
        (None, "null", SHA),
        ("", "empty", SHA),
        ("  \t", "blank", SHA),
        ("ftp://example.org/a.jpg", "scheme", SHA),
        ("file:///etc/passwd", "scheme", SHA),
        ("javascript:alert(1)", "scheme", SHA),
        ("example.org/a.jpg", "no scheme", SHA),
        ("http:///a.jpg", "no host", SHA),
        ("http://user:secret@example.org/a.jpg", "password", SHA),
        ("http://example.org/a\r\nHost: b", "header injection", SHA),
        (good, "duplicate", SHA),
        (f"  {good} ", "duplicate after stripping", SHA),
        ("http://example.org/bad-hash", "hash", "deadbeef"),
        ("http://example.org/no-hash", "kept without hash", None),
        ("HTTPS://EXAMPLE.org/upper", None, SHA.upper()),
        ("http://example.org/bad-hash", "kept: its twin was refused", f"sha256:{SHA}"),
        ("http://example.org/../../etc/x?a=b#c", "x" * 1_000_000, SHA),
    ]
    path = parquet(
        tmp_path / "list.parquet",
        {name: [row[i] for row in rows] for i, name in enumerate(("url", "caption", "sha256"))},
    )
    kept, about = cut(capsys, path)
    assert about["counts"] == {
        "kept": 5, "no_url": 3, "bad_scheme": 4, "bad_url": 2, "credentials": 1, "bad_hash": 1,
        "duplicate": 2,
    }  # fmt: skip
    assert sum(about["counts"].values()) == len(rows) == about["stop"] - about["start"]
    assert about["notes"] == {"caption_missing": 1, "caption_not_utf8": 0, "hash_missing": 1}
    assert [row["row"] for row in kept] == list(range(5))
    assert [row["sha256"] for row in kept] == [SHA, "", SHA, SHA, SHA]
    assert [row["caption"] for row in kept][:4] == [
        "first", "kept without hash", "", "kept: its twin was refused",
    ]  # fmt: skip
    assert len(kept[4]["caption"]) == 1_000_000
    assert about["source"] == "list.parquet"


def test_captions_that_are_not_utf8_are_replaced_and_counted(tmp_path, capsys):
    path = tmp_path / "latin.csv"
    lines = [b"\xef\xbb\xbfurl,caption", b"http://a.b/1,caf\xe9", b"http://a.b/2,caf\xc3\xa9", b""]
    path.write_bytes(b"\r\n".join([*lines[:3], b"http://a.b/\xff,bad url", b""]))
    kept, about = cut(capsys, path, *NO_HASH)
    assert [row["caption"] for row in kept] == ["caf\ufffd", "café"]
    assert about["notes"]["caption_not_utf8"] == 1
    assert about["counts"]["bad_url"] == 1
    # Parquet: binary columns, and string columns whose bytes are not what they say.
    wrong = pa.array([b"caf\xe9", b"ok"], pa.binary())
    lying = pa.Array.from_buffers(pa.string(), 2, wrong.buffers())
    for name, column in (("binary", wrong), ("lying", lying)):
        path = parquet(tmp_path / f"{name}.parquet", {"url": urls(2), "caption": column})
        kept, about = cut(capsys, path, *NO_HASH)
        assert [row["caption"] for row in kept] == ["caf\ufffd", "ok"]
        assert about["notes"]["caption_not_utf8"] == 1


def test_column_types_that_hold_text_are_read(tmp_path, capsys):
    links = pa.array(urls(3))
    raw = pa.array([bytes.fromhex(SHA)] * 3, pa.binary(32))
    columns = {
        "dictionary": links.dictionary_encode(),
        "large": links.cast(pa.large_string()),
        "binary": links.cast(pa.binary()),
    }
    for name, column in columns.items():
        path = parquet(
            tmp_path / f"{name}.parquet", {"url": column, "caption": pa.nulls(3), "sha256": raw}
        )
        kept, about = cut(capsys, path)
        assert [row["url"] for row in kept] == urls(3)
        assert {row["sha256"] for row in kept} == {SHA}
        assert about["notes"]["caption_missing"] == 3


def test_csv_with_newlines_and_ragged_records(tmp_path, capsys):
    path = tmp_path / "odd.csv"
    path.write_text(
        'url,caption,x\nhttp://a.b/1,"two\nlines, ""quoted""",1\n\nhttp://a.b/2\n'
        "http://a.b/3,five \" inches,1,extra,more\nhttp://a.b/4,o'k,1"
    )
    assert count_rows(path) == 4
    kept, about = cut(capsys, path, *NO_HASH)
    assert [row["caption"] for row in kept] == ['two\nlines, "quoted"', "", 'five " inches', "o'k"]
    assert about["counts"]["no_url"] == 0


def test_tsv_takes_quotes_as_they_are(tmp_path, capsys):
    path = tmp_path / "cc3m.tsv"
    path.write_text('caption\turl\n"unbalanced\thttp://a.b/1\nx\thttp://a.b/2\n')
    assert count_rows(path) == 2
    kept, _ = cut(capsys, path, *NO_HASH)
    assert [row["caption"] for row in kept] == ['"unbalanced', "x"]


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, capsys):
    output = tmp_path / "urls" / "o.parquet"

    def refusal(path: Path, *options: object) -> str:
        line = prepare(
            capsys, "--metadata", path, "--chunk-index", 0, "--output", output, *options
        )  # fmt: skip
        assert not list(output.parent.glob("*")), "a refused list leaves nothing behind"
        assert path.name in line
        return line

    upper = parquet(tmp_path / "laion.parquet", {"URL": urls(2), "TEXT": ["a", "b"]})
    line = refusal(upper)
    assert "'URL', 'TEXT'" in line and "did you mean 'URL'?" in line and "url_column" in line
    assert "caption_column" in refusal(upper, "--url-column", "URL")
    line = refusal(upper, "--url-column", "URL", "--caption-column", "TEXT")
    assert "hash_column" in line and "null if the list has none" in line
    number = parquet(tmp_path / "types.parquet", {"url": [1, 2]})
    assert "int64" in refusal(number, "--caption-column", "null", *NO_HASH)
    nested = parquet(tmp_path / "nested.parquet", {"url": [["a"], ["b"]]})
    assert "list<" in refusal(nested, "--caption-column", "null", *NO_HASH)
    empty = parquet(tmp_path / "empty.parquet", {"url": pa.array([], pa.string())})
    assert "no rows" in refusal(empty)
    (tmp_path / "nothing.csv").write_text("")
    assert "no rows" in refusal(tmp_path / "nothing.csv")
    (tmp_path / "header.csv").write_text("url,caption\n")
    assert "no rows" in refusal(tmp_path / "header.csv")
    (tmp_path / "broken.parquet").write_bytes(upper.read_bytes()[:-20])
    assert "not a whole parquet" in refusal(tmp_path / "broken.parquet")
    (tmp_path / "zero.parquet").write_bytes(b"")
    assert "not a whole parquet" in refusal(tmp_path / "zero.parquet")
    packed = gzip.compress(("url\n" + "\n".join(urls(500))).encode())
    (tmp_path / "cut.csv.gz").write_bytes(packed[: len(packed) // 2])
    assert "not readable to its end" in refusal(tmp_path / "cut.csv.gz")
    (tmp_path / "plain.txt.gz").write_text("http://a.b/1\n")
    assert "not readable to its end" in refusal(tmp_path / "plain.txt.gz")
    (tmp_path / "open.csv").write_text('url\n"http://a.b/1\n' + "x" * (1 << 25))
    assert "never closed" in refusal(tmp_path / "open.csv")
    assert "no such file" in refusal(tmp_path / "gone.parquet")
    (tmp_path / "list.jsonl").write_text("{}")
    assert ".parquet" in refusal(tmp_path / "list.jsonl")
    bad = parquet(tmp_path / "bad.parquet", {"url": ["ftp://x", None]})
    line = refusal(bad, "--caption-column", "null", *NO_HASH)
    assert "none of the rows 0 to 1" in line and "bad_scheme 1" in line


def test_damage_inside_a_parquet_file_is_named(tmp_path, capsys):
    path = parquet(
        tmp_path / "damaged.parquet",
        {"url": urls(5000)},
        compression="zstd",
        use_dictionary=False,
    )
    data = bytearray(path.read_bytes())
    data[200:3000] = bytes(2800)
    path.write_bytes(data)
    options = ["--output", tmp_path / "urls", "--caption-column", "null", *NO_HASH]
    assert "damaged.parquet" in prepare(capsys, "--metadata", path, *options)
    assert not list((tmp_path / "urls").glob("*"))


def test_a_chunk_beyond_the_end_and_a_wrong_output(tmp_path, capsys):
    path = parquet(tmp_path / "list.parquet", {"url": urls(5)})
    common = ["--metadata", path, "--caption-column", "null", *NO_HASH, "--chunk-rows", 2]
    line = prepare(capsys, *common, "--chunk-index", 3, "--output", tmp_path / "o.parquet")
    assert "5 rows" in line and "0 to 2" in line
    assert "no chunk -1" in prepare(
        capsys, *common, "--chunk-index=-1", "--output", tmp_path / "o.parquet"
    )
    assert "ending in .parquet" in prepare(
        capsys, *common, "--chunk-index", 0, "--output", tmp_path / "folder"
    )
    assert "a folder" in prepare(capsys, *common, "--output", tmp_path / "o.parquet")


def test_only_the_row_groups_needed_are_read(tmp_path, capsys, monkeypatch):
    path = parquet(
        tmp_path / "list.parquet", {"url": urls(100), "big": ["x"] * 100}, row_group_size=10
    )
    asked = []
    real = pq.ParquetFile.iter_batches

    def spy(self, *arguments, **options):
        asked.append((options["row_groups"], options["columns"]))
        return real(self, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    options = ["--chunk-rows", "15", "--caption-column", "null", *NO_HASH]
    kept, _ = cut(capsys, path, *options, index=2)
    assert [row["url"] for row in kept] == urls(100)[30:45]
    assert asked == [([3, 4], ["url"])]


def test_many_row_groups_are_written_and_numbered(tmp_path, capsys):
    n = (1 << 16) + 5
    path = tmp_path / "long.txt"
    path.write_text("\n".join(urls(n)))
    kept, _ = cut(capsys, path, "--chunk-rows", 1_000_000)
    assert [row["row"] for row in kept] == list(range(n))
    assert [row["url"] for row in kept] == urls(n)
    output = tmp_path / "urls" / "long-00000.parquet"
    assert pq.ParquetFile(output).metadata.num_row_groups == 2
    before = output.read_bytes()
    cut(capsys, path, "--chunk-rows", 1_000_000)
    assert output.read_bytes() == before


def test_raw_digests_are_read_and_md5_in_hex_is_refused(tmp_path, capsys):
    digests = [hashlib.sha256(bytes([i])).digest() for i in range(3)]
    md5 = [hashlib.md5(b"image").hexdigest().encode(), b"A" * 32]
    path = parquet(
        tmp_path / "list.parquet",
        {"url": urls(5), "caption": [""] * 5, "sha256": pa.array(digests + md5, pa.binary())},
    )
    rows, about = cut(capsys, path)
    assert [row["sha256"] for row in rows] == [digest.hex() for digest in digests]
    assert about["counts"]["bad_hash"] == 2

"""Counts kept between processes: taken where a list is as it was, never where it has changed."""

from __future__ import annotations

import os
import time

import pytest

from mlcd.data import list_counts, text_lists
from mlcd.data.url_lists import count_rows

LIST = 'url\tcaption\nhttp://a\t"two\nlines"\nhttp://b\t"b"\n'


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(list_counts, "_KNOWN", {})


def next_process(monkeypatch, kept):
    """Forget all, as a new process does, and read what was kept."""
    monkeypatch.setattr(list_counts, "_KNOWN", {})
    list_counts.recall(kept)


def never(*_):
    raise AssertionError("counted again")


@pytest.fixture
def settled(monkeypatch):
    """The clock is an hour on: all files have been as they are for long."""
    now = time.time
    monkeypatch.setattr(list_counts.time, "time", lambda: now() + 3600)


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [("a.tsv", LIST, 2), ("a.csv", "url\nx\ny\n", 2), ("a.txt", "x\ny", 2)],
)
def test_a_list_is_counted_once_for_all_processes(tmp_path, monkeypatch, settled, name, text, rows):
    path, kept = tmp_path / name, tmp_path / "state" / "lists.json"
    path.write_text(text)
    assert count_rows(path) == rows
    list_counts.keep(kept)
    next_process(monkeypatch, kept)
    for work in ("_read_through", "_line_count", "_blocks"):
        monkeypatch.setattr(text_lists, work, never)
    assert count_rows(path) == rows


def test_a_changed_list_is_counted_again(tmp_path, monkeypatch, settled):
    """Also one of the same size, at the same place, whose time was set back."""
    path, kept = tmp_path / "a.tsv", tmp_path / "lists.json"
    path.write_text(LIST)
    before = path.stat()
    assert count_rows(path) == 2
    list_counts.keep(kept)
    next_process(monkeypatch, kept)
    path.write_text(LIST.replace('"two\nlines"', "'two\nlines'"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns
    assert count_rows(path) == 3


def test_a_list_that_was_just_written_is_not_kept(tmp_path, monkeypatch):
    path, kept = tmp_path / "a.tsv", tmp_path / "lists.json"
    path.write_text(LIST)
    count_rows(path)
    list_counts.keep(kept)
    next_process(monkeypatch, kept)
    assert not list_counts._KNOWN


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"counts": 3}', "null", "wrong count"])
def test_a_damaged_file_gives_nothing(tmp_path, monkeypatch, settled, damage):
    path, kept = tmp_path / "a.tsv", tmp_path / "lists.json"
    path.write_text(LIST)
    count_rows(path)
    list_counts.keep(kept)
    text = kept.read_text()
    kept.write_text(text.replace("\n   3\n", "\n   7\n") if damage == "wrong count" else damage)
    assert kept.read_text() != text
    next_process(monkeypatch, kept)
    assert count_rows(path) == 2
    kept.unlink()
    next_process(monkeypatch, kept)
    assert count_rows(path) == 2

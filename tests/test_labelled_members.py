"""Labelled pictures of a webdataset tar: every ending of a picture, and nothing lost unsaid."""

import json
import tarfile

import pytest
from builders import add_member

from mlcd.errors import UserError
from mlcd.stores.images import PICTURES, labelled_members


def pack(path, *members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            add_member(tar, name, data)
    return path


def test_every_ending_in_either_case(tmp_path):
    endings = sorted(PICTURES) + [ending.upper() for ending in sorted(PICTURES)]
    members = []
    for row, ending in enumerate(endings):
        fields = json.dumps([row]).encode()
        members += [(f"{row}.{ending}", ending.encode()), (f"{row}.Json", fields)]
    path = pack(tmp_path / "a.tar", *members)
    assert list(labelled_members(path)) == [
        (str(row), ending.encode(), [row]) for row, ending in enumerate(endings)
    ]


def test_other_members_are_counted_and_texts_pass(tmp_path, caplog):
    path = pack(
        tmp_path / "a.tar", ("a.jpg", b"a"), ("a.txt", b"words"), ("a.json", b"{}"),
        ("b.heic", b"b"), ("b.json", b"{}"),
    )  # fmt: skip
    with caplog.at_level("WARNING", logger="mlcd"):
        assert [key for key, *_ in labelled_members(path)] == ["a"]
    assert "1 members ignored for their ending ('heic' 1)" in caplog.text
    assert "1 .json without a picture, 'b' first" in caplog.text


def test_two_pictures_of_one_key_and_a_picture_without_json_are_refused(tmp_path):
    twins = pack(tmp_path / "a.tar", ("a.jpg", b"1"), ("a.JPG", b"2"), ("a.json", b"{}"))
    with pytest.raises(UserError, match=r"a.tar: two pictures are called a"):
        list(labelled_members(twins))
    alone = pack(tmp_path / "b.tar", ("a.PNG", b"1"))
    with pytest.raises(UserError, match=r"b.tar: picture a has no .json"):
        list(labelled_members(alone))

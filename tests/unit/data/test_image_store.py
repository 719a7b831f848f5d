"""Image stores and labeled tars: offsets, every ending of an image, and nothing lost unsaid."""

import json

import numpy as np
import pytest

from helpers.builders import image_store, jpeg
from helpers.images import pack
from mlcd.data.decode import decode
from mlcd.data.image_store import ImageStore
from mlcd.data.members import IMAGES, labeled_members
from mlcd.utils.errors import UserError


def test_offsets_lead_to_the_images(tmp_path):
    store = ImageStore(image_store(tmp_path / "a-00000", 7, rows_per_tar=3))
    table = store.table()
    for row in table.itertuples():
        data = store.read(row.tar, row.offset, row.size, int(row.sha256[:16], 16))
        assert data == jpeg(row.row)
        assert decode(data, max_pixels=10**6).size == (48, 48)


def test_every_ending_in_either_case(tmp_path):
    endings = sorted(IMAGES) + [ending.upper() for ending in sorted(IMAGES)]
    members = []
    for row, ending in enumerate(endings):
        fields = json.dumps([row]).encode()
        members += [(f"{row}.{ending}", ending.encode()), (f"{row}.Json", fields)]
    path = pack(tmp_path / "a.tar", *members)
    assert list(labeled_members(path)) == [
        (str(row), ending.encode(), [row]) for row, ending in enumerate(endings)
    ]


def test_other_members_are_counted_and_texts_pass(tmp_path, caplog):
    path = pack(
        tmp_path / "a.tar", ("a.jpg", b"a"), ("a.txt", b"words"), ("a.json", b"{}"),
        ("b.heic", b"b"), ("b.json", b"{}"),
    )  # fmt: skip
    with caplog.at_level("WARNING", logger="mlcd"):
        assert [key for key, *_ in labeled_members(path)] == ["a"]
    assert "1 members ignored for their ending ('heic' 1)" in caplog.text
    assert "1 .json without an image, 'b' first" in caplog.text


def test_two_images_of_one_key_and_a_image_without_json_are_refused(tmp_path):
    twins = pack(tmp_path / "a.tar", ("a.jpg", b"1"), ("a.JPG", b"2"), ("a.json", b"{}"))
    with pytest.raises(UserError, match=r"a.tar: two images are called a"):
        list(labeled_members(twins))
    alone = pack(tmp_path / "b.tar", ("a.PNG", b"1"))
    with pytest.raises(UserError, match=r"b.tar: image a has no .json"):
        list(labeled_members(alone))


def test_images_are_found_by_their_keys_in_any_order(tmp_path):
    store = ImageStore(image_store(tmp_path / "a-00000", 7, rows_per_tar=3))
    keys = np.array([b"000000005", b"000000000", b"000000003"], "S9")
    found = store.rows_of(keys, ["url"])
    assert found["key"].tolist() == [key.decode() for key in keys]
    every = store.arrived(["url"])
    for column in ("url", "sha256", "offset"):
        assert found[column].tolist() == every[column].iloc[[5, 0, 3]].tolist()
    assert len(store.rows_of(keys[:0], ["url"])) == 0
    with pytest.raises(UserError, match=r"rows\.parquet: has no image 000000009; rerun download"):
        store.rows_of(np.array([b"000000001", b"000000009"], "S9"))

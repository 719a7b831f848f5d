"""Images of folders, listed once."""

from __future__ import annotations

import pytest

from helpers.searches import write_images
from mlcd.data.image_folder import images


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path)


def test_files_and_folders_are_listed_once_relative_to_what_they_share(folder):
    named = [folder / "b", folder / "b" / "c.JPG", folder / "z.jpg"]
    keys = [one.key for one in images(named)]
    assert keys == [b"b/c.JPG", b"b/cut.jpg", "b/deep/ü.jpeg".encode(), b"z.jpg"]
    assert [one.key for one in images([folder / "b" / "c.JPG"])] == [b"c.JPG"]

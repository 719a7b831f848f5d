"""Images find their own rows: by order, and by each way in which an image may be called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers.builders import image_store, jpeg
from helpers.local_images import chunk, class_folders, indexed, webdataset
from mlcd.data.image_store import ImageStore
from mlcd.data.own.base import EMBEDDING
from mlcd.data.own.join import joined, rows_by_key
from mlcd.data.own.npy import beside
from mlcd.data.own.options import Join
from mlcd.data.own.rows import OwnRows
from mlcd.utils.errors import UserError

IMAGES = {f"{row:09d}": jpeg(row) for row in range(6)}


def own(folder: Path, names: list[str], key: str = "name") -> OwnRows:
    """Write rows that are called so; row i is all i."""
    rows = np.repeat(np.arange(len(names), dtype=np.float32)[:, None], 2, axis=1)
    np.save(folder / "e.npy", rows)
    pd.DataFrame({key: names}).to_parquet(folder / "e.parquet")
    return OwnRows([str(folder / "e.npy")], EMBEDDING)


def rows_of(how: Join, rows: OwnRows, store: ImageStore) -> list[int]:
    return joined(how, rows, store, store.arrived(["row", "url"])).tolist()


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImageStore]:
    """A chunk of webdataset tars, and its table."""
    base = tmp_path_factory.mktemp("tars")
    webdataset(base / "set/00000.tar", IMAGES, dict.fromkeys(IMAGES, ""))
    table = chunk(base / "set", base)
    return table, indexed(table, base / "images/c-00000")


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImageStore]:
    """A chunk of class folders, and its table."""
    base = tmp_path_factory.mktemp("loose")
    class_folders(base / "photos", IMAGES)
    table = chunk(base / "photos", base)
    return table, indexed(table, base / "images/c-00000")


def test_webdataset_keys_join_where_they_are_unique(tars, tmp_path):
    table, store = tars
    order = [4, 0, 5, 1, 3]  # the image 2 has no row
    rows = own(tmp_path, [f"{row:09d}" for row in order])
    wanted = [order.index(row) if row in order else -1 for row in range(6)]
    assert rows_of(Join("name", None, str(table), True), rows, store) == wanted
    assert rows_of(Join("name", None, str(table), False), rows, store) == [-1] * 6


def test_two_rows_of_one_tar_key_are_refused(tars, tmp_path):
    table, store = tars
    rows = own(tmp_path, [*(f"{row:09d}" for row in range(6)), "000000003"])
    with pytest.raises(UserError, match="rows 3 and 6 of own files are both called '000000003'"):
        rows_of(Join("name", None, str(table), True), rows, store)


@pytest.mark.parametrize("form", ["below", "with", "absolute", "sha256"])
def test_paths_and_hashes_join(form, loose, tmp_path):
    table, store = loose
    frame = store.arrived(["url"])
    root = table.parent.parent / "photos"
    names = {
        "below": frame["url"], "with": "photos/" + frame["url"],
        "absolute": f"{root}/" + frame["url"], "sha256": frame["sha256"],
    }[form].tolist()  # fmt: skip
    # Copies of an image may have a row each: the first counts.
    rows = own(tmp_path, [*names[::-1], *names])
    how = Join("name", None, str(table))
    if form == "below":
        # Unless they differ: the other row may be of another folder's image of that name.
        with pytest.raises(UserError, match=r"rows 5 and 6 of own files are both called 'class 0/"):
            rows_of(how, rows, store)
        values = np.load(tmp_path / "e.npy")
        np.save(tmp_path / "e.npy", np.concatenate([values[:6], values[:6][::-1]]))
        rows = OwnRows([str(tmp_path / "e.npy")], EMBEDDING)
    assert rows_of(how, rows, store) == list(range(6))[::-1]


def test_three_rows_of_one_image_are_told_where_they_must_say_one_thing(loose, tmp_path):
    table, store = loose
    frame = store.arrived(["url", "sha256"])
    names = frame["url"].tolist()
    for more, problem in (([names[2]], False), ([names[2], names[2]], True)):
        rows = own(tmp_path, [*names, *more])
        if problem:
            with pytest.raises(UserError, match="more than two rows are called 'class 0/"):
                rows_by_key(rows, "name", frame, str(table), tar_keys=False, twice_at_most=True)
        else:
            _, others = rows_by_key(
                rows, "name", frame, str(table), tar_keys=False, twice_at_most=True
            )
            assert others.tolist() == [-1, -1, 6, -1, -1, -1]


def test_keys_lie_beside_an_npy_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("here.npy", np.zeros((2, 2), np.float32))
    pd.DataFrame({"name": ["a", "b"]}).to_parquet("here.parquet")
    assert beside(Path("here.npy")) == Path("here.parquet")
    OwnRows(["here.npy"], EMBEDDING).check_key("name")
    (tmp_path / "img_emb").mkdir()
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "metadata_3.parquet").touch()
    monkeypatch.chdir(tmp_path / "img_emb")
    found = beside(Path("img_emb_3.npy"))
    assert found.resolve() == tmp_path / "metadata" / "metadata_3.parquet"


def test_by_order_rows_and_images_must_be_as_many(tmp_path):
    image_store(tmp_path / "images/c-00000", 5)
    store = ImageStore(tmp_path / "images/c-00000")
    rows = own(tmp_path, list("abcdefg"))
    assert rows_of(Join(None, "2:7"), rows, store) == [2, 3, 4, 5, 6]
    for span, message in {
        None: "5 rows, but 7 own rows are for it", "0:4": "5 rows, but 4 own rows",
        "3:8": "there are 7 rows", "a:b": "expected START:STOP", "5:2": "expected START:STOP",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=message):
            rows_of(Join(None, span), rows, store)

"""Rows of other programs' files: read as they were written, or refused by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlcd.config import Config, Embed
from mlcd.data.own import checks
from mlcd.data.own.arrays import open_array
from mlcd.data.own.base import CENTROID, EMBEDDING, LABEL, What
from mlcd.data.own.rows import OwnRows, Share, expand, identity, shares
from mlcd.data.url_lists import Chunk, expand_lists
from mlcd.utils.errors import UserError

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((10_000, 5), np.float32)
#: Rows far apart, near, and the last of all.
IDS = np.unique(np.r_[0, 3, 4, 70, RNG.integers(0, len(ROWS), 50), 9_999])


def parquet(path: Path, rows: np.ndarray, kind: str, **columns: Any) -> Path:
    """Write rows as a column `embedding` of lists of fixed or free length, in small groups."""
    flat = pa.array(rows.ravel())
    if kind == "fixed":
        column = pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
    else:
        offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1])
        column = pa.ListArray.from_arrays(offsets, flat)
    pq.write_table(pa.table({"embedding": column, **columns}), path, row_group_size=3_000)
    return path


def written(folder: Path, form: str) -> Path:
    """Write ROWS in a form."""
    path = folder / f"e{'.parquet' if form in ('fixed', 'lists') else form}"
    if form == ".npy":
        np.save(path, ROWS)
    elif form == ".h5":
        with h5py.File(path, "w") as file:
            file["vectors"] = ROWS
            file["number"] = np.arange(3)
    else:
        parquet(path, ROWS, form)
    return path


@pytest.mark.parametrize("form", [".npy", ".h5", "fixed", "lists"])
def test_rows_are_those_that_were_written(form: str, tmp_path: Path) -> None:
    found = open_array(written(tmp_path, form), EMBEDDING)
    assert (found.rows, found.width) == ROWS.shape
    np.testing.assert_array_equal(found.read(2_990, 6_010), ROWS[2_990:6_010])
    np.testing.assert_array_equal(found.take(IDS), ROWS[IDS])
    assert found.read(0, 0).shape == found.take(IDS[:0]).shape == (0, 5)


def test_several_files_are_one_after_another_in_the_order_of_numbers(tmp_path: Path) -> None:
    parts = np.split(ROWS[:120], 12)
    for number, part in enumerate(parts):
        np.save(
            tmp_path / f"img_emb_{number}.npy", part.astype([np.float16, np.float64][number % 2])
        )
    own = OwnRows(expand([str(tmp_path / "*.npy")], "embed.embeddings", None), EMBEDDING)
    some = RNG.permutation(120)[:40]
    np.testing.assert_allclose(own.take(some), ROWS[some], atol=2e-3)


def test_labels_may_be_one_column(tmp_path: Path) -> None:
    numbers = np.arange(7, dtype=np.int16)
    np.save(tmp_path / "a.npy", numbers)
    pd.DataFrame({"path": list("abcdefg"), "label": numbers}).to_parquet(tmp_path / "a.parquet")
    for name in ("a.npy", "a.parquet"):
        found = open_array(tmp_path / name, LABEL)
        assert (found.rows, found.width) == (7, 1)
        np.testing.assert_array_equal(found.take(np.array([1, 6]))[:, 0], [1, 6])


def bad_files(folder: Path) -> dict[str, tuple[What, str]]:
    """Write what cannot be taken; return name → what is asked for, and the refusal."""
    np.save(folder / "object.npy", np.array([{}, {}], object), allow_pickle=True)
    np.save(folder / "flat.npy", np.zeros(4, np.float32))
    np.save(folder / "whole.npy", np.zeros((4, 2), np.int32))
    np.save(folder / "columns.npy", np.asfortranarray(np.zeros((4, 2), np.float32)))
    np.save(folder / "cut.npy", ROWS)
    os.truncate(folder / "cut.npy", 9_000)
    (folder / "no.npy").write_bytes(b"PK\x03\x04 no array")
    (folder / "no.parquet").write_bytes(b"no")
    pd.DataFrame({"a": [1.0]}).to_parquet(folder / "none.parquet")
    with h5py.File(folder / "two.h5", "w") as file:
        file["a"], file["b"] = ROWS[:2], ROWS[:2]
    np.save(folder / "float.npy", np.zeros((4, 2)))
    return {
        "object.npy": (EMBEDDING, "of float16, float32 or float64, found object"),
        "flat.npy": (EMBEDDING, r"found float32 \[4\]"),
        "whole.npy": (EMBEDDING, r"found int32 \[4, 2\]"),
        "columns.npy": (EMBEDDING, "Fortran order"),
        "cut.npy": (EMBEDDING, "shorter than its header"),
        "no.npy": (EMBEDDING, "not readable as .npy"),
        "no.parquet": (EMBEDDING, "not a whole parquet"),
        "none.parquet": (EMBEDDING, "a column 'embedding' of lists .*found 'a'"),
        "two.h5": (EMBEDDING, "a dataset 'embedding', found 'a', 'b'"),
        "float.npy": (LABEL, "whole numbers, found float64"),
        "missing.npy": (CENTROID, "No such file"),
        "a.txt": (CENTROID, "ending in .npy, .parquet"),
    }


def test_what_cannot_be_taken_is_refused_by_name(tmp_path: Path) -> None:
    for name, (what, message) in bad_files(tmp_path).items():
        with pytest.raises(UserError, match=f"{name}: .*{message}"):
            open_array(tmp_path / name, what)


def test_a_list_of_another_length_is_refused_by_its_row(tmp_path: Path) -> None:
    column = pa.array([[1.0, 2.0], [1.0, 2.0], [3.0]])
    pq.write_table(pa.table({"embedding": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet: row 2 of 'embedding' has not the 2 numbers"):
        open_array(tmp_path / "a.parquet", EMBEDDING).read(0, 3)


CHUNKS = {"a-00000": Chunk("a", 0, 4), "a-00001": Chunk("a", 1, 2), "b-00000": Chunk("b", 0, 3)}


def three_files(folder: Path, rows: int = 9) -> list[str]:
    for number, part in enumerate(np.split(ROWS[:rows], [3, 5])):
        np.save(folder / f"{number}.npy", part)
    return [str(folder / "*.npy")]


def test_by_order_each_chunk_has_its_files_and_its_content(tmp_path: Path) -> None:
    entries = three_files(tmp_path)
    files = [str(tmp_path / f"{number}.npy") for number in range(3)]
    found = shares(entries, EMBEDDING, None, CHUNKS, "embed.embeddings")
    assert found == {
        "a-00000": Share((files[0], files[1]), (), 0, 4),
        "a-00001": Share((files[1], files[2]), (), 1, 3),
        "b-00000": Share((files[2],), (), 1, 4),
    }
    before = {name: identity(share, EMBEDDING) for name, share in found.items()}
    identity.cache_clear()
    np.save(files[0], ROWS[9:12])
    after = {name: identity(share, EMBEDDING) for name, share in found.items()}
    assert {name for name in before if before[name] != after[name]} == {"a-00000"}


def test_rows_are_not_joined_by_an_order_that_may_be_another(tmp_path: Path) -> None:
    """Lists of a pattern come by bytes (p10 before p2), files of one by numbers."""
    entries = three_files(tmp_path)
    files = [str(tmp_path / f"{number}.npy") for number in range(3)]
    lists = {f"p{n}-00000": Chunk(f"lists/p{n}.parquet", 0, 3) for n in (1, 10, 2)}
    message = r"embed.embeddings: .*\(lists/p1.parquet before lists/p10.parquet …\); name the files"
    with pytest.raises(UserError, match=message):
        shares(entries, EMBEDDING, None, lists, "embed.embeddings")
    found = shares(files, EMBEDDING, None, lists, "embed.embeddings")
    assert found["p10-00000"].files == (files[1], files[2])
    sorted_lists = {f"p{n}-00000": Chunk(f"lists/p{n}.parquet", 0, 3) for n in (1, 2, 10)}
    shares(entries, EMBEDDING, None, sorted_lists, "embed.embeddings")
    mixed = {"a-00000": Chunk("a", 0, 4), "photos-00000": Chunk("photos", 0, 5, "of its files")}
    with pytest.raises(UserError, match=r"URL lists and images on disk.*set embed.key"):
        shares(entries, EMBEDDING, None, mixed, "embed.embeddings")


def test_folders_with_brackets_are_no_patterns(tmp_path: Path) -> None:
    folder, other = tmp_path / "emb [v2]", tmp_path / "emb v"
    for place in (folder, other):
        place.mkdir()
        three_files(place)
    files = expand([str(folder)], "embed.embeddings", None)
    assert [Path(path).parent.name for path in files] == ["emb [v2]"] * 3
    assert expand(files, "embed.embeddings", None) == files
    path = tmp_path / "x [2024].parquet"
    path.touch()
    assert expand_lists([str(path)]) == [str(path)]


def test_a_wrong_number_of_rows_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"embed.embeddings: 8 rows in 3 files .*metadata has 9"):
        shares(three_files(tmp_path, 8), EMBEDDING, None, CHUNKS, "embed.embeddings")


def test_a_folder_of_clip_retrieval_asks_for_its_key(tmp_path: Path) -> None:
    (tmp_path / "img_emb").mkdir()
    (tmp_path / "metadata").mkdir()
    np.save(tmp_path / "img_emb/img_emb_0.npy", ROWS[:9])
    frame = pd.DataFrame({"image_path": list("abcdefghi"), "n": range(9)})
    frame.to_parquet(tmp_path / "metadata/metadata_0.parquet")
    given = (str(tmp_path),), EMBEDDING
    with pytest.raises(UserError, match=r"embed.key: .*one of its columns \(image_path, n\)"):
        shares(*given, None, CHUNKS, "embed.embeddings")
    share = shares(*given, "image_path", CHUNKS, "embed.embeddings")["b-00000"]
    assert share.keys == (str(tmp_path / "metadata/metadata_0.parquet"),)
    for key, message in (("url", "one column 'url' of text.*'image_path', 'n'"), ("n", "of text")):
        with pytest.raises(UserError, match=message):
            shares(*given, key, CHUNKS, "embed.embeddings")
    frame[:8].to_parquet(tmp_path / "metadata/metadata_0.parquet")
    with pytest.raises(UserError, match=r"metadata_0.parquet: 8 rows, but .*img_emb_0.npy has 9"):
        shares(*given, "image_path", CHUNKS, "embed.embeddings")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"cluster": {"k": 8, "centers": "c.npy"}}, "has 6 centers, and cluster.k is 8"),
        ({"cluster": {"k": 6, "centers": "c.npy"}}, "5 dimensions, but the embeddings have 1280"),
        ({"cluster": {"k": 6, "initial": "c.npy"}}, "cluster.initial: c.npy has 5 dimensions"),
        ({"cluster": {"k": 6, "centers": "c.npy"}, "embed": {"model": "ViT-B-32"}}, "have 512"),
        ({"cluster": {"k": 6, "centers": "none.npy"}}, "'none.npy' is no file that can be read"),
        ({"cluster": {"k": 6, "centers": "c.npy"}, "embed": {"embeddings": ["e.npy"]},
          "evaluate": {"models": ["trained"]}}, "5 dimensions, but the embeddings have 4"),
        ({"label": {"labels": ["l.npy"], "top": 3}, "train": {"center_init": "random"}},
         "label.top: 3 labels per image, but l.npy has 2"),
    ],
)  # fmt: skip
def test_shapes_are_compared_at_the_start(
    config: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("c.npy", ROWS[:6])
    np.save("e.npy", ROWS[:9, :4])
    np.save("l.npy", np.zeros((9, 2), np.int64))
    with pytest.raises(UserError, match=message):
        checks.check(Config.model_validate(config), {})


def test_a_key_needs_rows() -> None:
    with pytest.raises(ValueError, match=r"give embed.embeddings"):
        Embed(key="url")

"""Stage regions: exact output, given boxes, segments, resume to the same bytes, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from helpers.builders import image_store
from helpers.region_runs import EMBED, SCENES, Chunk, scene
from mlcd import cli
from mlcd.config import Embed, Regions
from mlcd.data.boxes import distinct
from mlcd.data.decode import decode
from mlcd.data.embeddings import Embeddings, open_all
from mlcd.data.region_store import RegionStore
from mlcd.models import frozen
from mlcd.stages.regions import chunk as flow
from mlcd.stages.regions.given import read_boxes
from mlcd.stages.regions.proposals import regions_of
from mlcd.utils.errors import UserError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Chunk:
    chunk = Chunk(tmp_path_factory.mktemp("regions"))
    assert chunk.run() == 0
    return chunk


def test_given_boxes_are_cut_and_embedded_as_images_are(made: Chunk) -> None:
    """Against the plain reference: decode, crop, preprocess, encode in batches over images."""
    store, source = RegionStore(made.output), Embeddings(made.embeddings)
    assert made.found() == {
        row: [list(box) for box in boxes] for row, boxes in enumerate(SCENES) if boxes
    }
    encoder = frozen.load(EMBED.model, image_size=32)
    crops = [
        encoder.preprocess(decode(made.images[row], max_pixels=10**6).crop(box))
        for row, boxes in enumerate(SCENES) for box in boxes
    ]  # fmt: skip
    batches = [torch.stack(crops[start : start + 4]) for start in range(0, len(crops), 4)]
    expected = torch.cat([encoder.encode_images(batch) for batch in batches])
    assert np.array_equal(store.read(), expected.half().float().numpy())
    # As embeddings of images, and of the same model: one clustering takes both.
    open_all([made.embeddings, made.output])
    assert store.source == source.fingerprint
    assert store.attributes["manifest"] == source.attributes["manifest"]
    rows = store.images()
    assert store.keys().tolist() == source.keys()[rows].tolist()
    assert set(map(tuple, store.image_sizes().tolist())) == {(96, 64)}
    for column, whole in zip(store.places(), source.places(), strict=True):
        assert column.tolist() == whole[rows].tolist()
    with h5py.File(made.output) as file:
        assert {name: file[name].dtype.str for name in file} == {
            "embedding": "<f2", "box": "<f4", "image": "<i8", "image_size": "<i4", "key": "|S9",
            "tar": "<i4", "offset": "<i8", "size": "<i8", "digest": "<u8", "failed_key": "|S9",
            "failed_reason": "|S32",
        }  # fmt: skip
    assert list((made.output.parent / "state").iterdir()) == []


def test_bytes_do_not_depend_on_workers_or_on_where_a_run_was_cut(
    made: Chunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "_BLOCK", 2)
    whole, cut = tmp_path / "whole.h5", tmp_path / "cut" / "a.h5"
    assert made.run("--workers", 3, output=whole) == 0
    write, parts = flow._Work._write_part, []

    def stops(self, path, *rest):
        if len(parts) == 2:
            raise KeyboardInterrupt
        parts.append(path)
        write(self, path, *rest)

    monkeypatch.setattr(flow._Work, "_write_part", stops)
    assert made.run(output=cut) == 130
    assert not cut.exists()
    monkeypatch.setattr(flow._Work, "_write_part", write)
    times = [path.stat().st_mtime_ns for path in parts]
    kept = [path.read_bytes() for path in parts]

    def keeps(self, path, *rest):
        assert path not in parts
        write(self, path, *rest)

    monkeypatch.setattr(flow._Work, "_write_part", keeps)
    assert made.run(output=cut) == 0
    assert len(times) == len(kept) == 2
    assert cut.read_bytes() == whole.read_bytes()


def test_a_chunk_without_any_region_is_clustered_and_labeled_as_the_others(
    made: Chunk, tmp_path: Path
) -> None:
    output = tmp_path / "r.h5"
    table = made.write_table([None, "", "[]", " ", None], tmp_path / "t.parquet")
    assert made.run(output=output, tables=[table]) == 0
    store = RegionStore(output)
    assert (store.n, store.d) == (0, 1280)
    assert store.boxes().shape == (0, 4)
    assert store.images().tolist() == []
    centers, labels = tmp_path / "c.h5", tmp_path / "l.h5"
    files = [str(made.embeddings), str(output)]
    words = ["cluster", "--embeddings", *files, "--output", str(centers), "--k", "2"]
    assert cli.main([*words, "--ranks-per-node", "1", "--threads", "1"]) == 0
    words = ["label", "--embeddings", files[1], "--centroids", str(centers), "--top", "1"]
    assert cli.main([*words, "--output", str(labels), "--threads", "1"]) == 0
    with h5py.File(labels) as file:
        assert file["label"].shape == (0, 1)


def test_boxes_may_be_text_shares_and_of_a_list(made: Chunk, tmp_path: Path) -> None:
    shares = [
        json.dumps([[x0 / 96, y0 / 64, x1 / 96, y1 / 64] for x0, y0, x1, y1 in boxes])
        for boxes in SCENES
    ]
    table, output = made.write_table(shares, tmp_path / "t.parquet"), tmp_path / "r.h5"
    words = ("--metadata", table, "--list-rows", "0:5", "--url-column", "url")
    assert made.run(*words, output=output, tables=None, unit="shares") == 0
    # Rounded outward, a share whose product is a bit over a whole pixel takes one more.
    found = made.found(output)
    assert set(found) == {row for row, boxes in enumerate(SCENES) if boxes}
    for row, boxes in found.items():
        assert np.abs(np.array(boxes) - SCENES[row]).max() <= 1
    assert made.run(tables=None, output=tmp_path / "b.h5") == 2


@pytest.mark.parametrize(
    "value", ["[[1, 2, 3]]", "{}", "words", "[[5, 5, 1, 9]]", "[[NaN, 0, 1, 1]]", "[[[1,2,3,4]]]",
              f"[[0, 0, 1, 1{'0' * 400}]]"],
)  # fmt: skip
def test_what_is_no_box_is_refused_by_image(value: str) -> None:
    with pytest.raises(UserError, match=r"^t: boxes of u: .* is no list of boxes"):
        read_boxes(value, "t: boxes of u")


def test_a_list_of_texts_that_are_none_is_refused() -> None:
    """As a parquet file may hold them: nothing checks that its strings are UTF-8."""
    texts = pa.StringArray.from_buffers(
        1, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff")
    )
    (value,) = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), texts)
    with pytest.raises(UserError, match="'bytes' is no list of boxes"):
        read_boxes(value, "t: boxes of u")
    (good,) = pa.array([[[1.0, 2.0, 3.0, 4.0]]])
    assert read_boxes(good, "").tolist() == [[1, 2, 3, 4]]


def test_rows_of_one_image_that_say_different_things_are_refused(made, tmp_path, capsys) -> None:
    """As in a table of a row per box, of which only the first would count."""
    frame = pd.read_parquet(made.table)
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    frame.to_parquet(first)
    frame[:2].to_parquet(second)
    output = tmp_path / "r.h5"
    assert made.run(tables=[str(first), str(second)], output=output) == 0
    assert made.found(output) == made.found()
    url, boxes = "http://127.0.0.1/000000003.jpg", [[1, 2, 30, 40]]
    pd.DataFrame({"url": [url], "boxes": [boxes]}).to_parquet(second)
    assert made.run(tables=[str(first), str(second)], output=tmp_path / "s.h5") == 2
    assert f"b.parquet: boxes of {url}: another row has other boxes" in capsys.readouterr().err
    # What is no box is told of the file that holds it.
    pd.DataFrame({"url": [url], "boxes": [[[1, 2, 3]]]}).to_parquet(second)
    frame[frame["url"] != url].to_parquet(first)
    assert made.run(tables=[str(first), str(second)], output=tmp_path / "s.h5") == 2
    assert "b.parquet: boxes of http" in capsys.readouterr().err
    numbers = tmp_path / "n.parquet"
    pd.DataFrame({"url": [3], "boxes": [boxes]}).to_parquet(numbers)
    assert made.run(tables=[str(numbers)], output=tmp_path / "s.h5") == 2
    assert "n.parquet: column 'url' holds int64" in capsys.readouterr().err


def test_boxes_of_another_unit_are_told(made: Chunk, tmp_path: Path, capsys) -> None:
    assert made.run(unit="shares", output=tmp_path / "a.h5") == 0
    assert "boxes up to 92 are no shares" in capsys.readouterr().err
    shares = [[[0.1, 0.1, 0.5, 0.9]]] * len(SCENES)
    table = made.write_table(shares, tmp_path / "t.parquet")
    assert made.run(tables=[table], output=tmp_path / "b.h5") == 0
    assert "set regions.unit to shares" in capsys.readouterr().err


def test_a_very_long_list_of_boxes_is_looked_at_until_enough_are_kept() -> None:
    image = decode(scene([], 0), max_pixels=10**6)
    low = np.array([[x, y] for y in range(40) for x in range(70)], float)
    many = np.concatenate([low, low + 24], axis=1)
    section = Regions(source="column", column="boxes", most=5)
    whole = distinct(many.astype(int), 0.6, apart=np.array([[0, 0, 96, 64]]))
    kept = np.flatnonzero(whole == np.arange(len(many)))
    assert len(kept) > 20
    found = distinct(many.astype(int), 0.6, apart=np.array([[0, 0, 96, 64]]), most=5)
    last = kept[5]
    assert np.array_equal(found[:last], whole[:last]) and (found[last:] == -1).all()
    assert np.array_equal(regions_of(image, section, many), many[kept[:5]])


def test_values_of_a_column_that_are_boxes() -> None:
    for value in (None, "", " ", "[]", [], b"[]"):
        assert read_boxes(value, "").shape == (0, 4)
    for value in ([1, 2, 3, 4], [[1, 2, 3, 4]], "[1, 2, 3, 4]", b"[[1.0, 2, 3, 4]]"):
        assert read_boxes(value, "").tolist() == [[1, 2, 3, 4]]


def test_small_near_equal_and_whole_boxes_are_left_out_and_the_rest_cut_at_the_edge() -> None:
    image = decode(scene([], 0), max_pixels=10**6)
    boxes = np.array(
        [
            [-10, -5, 40, 40],  # cut
            [0, 0, 39.5, 39.5],  # near-equal to the first after the cut
            [1, 1, 96, 64],  # the whole
            [50, 10, 58, 60],  # thin
            [200, 10, 300, 60],  # outside
            [50.2, 20.7, 80, 50],  # rounded outward
            [10, 30, 60, 60],
        ]
    )
    section = Regions(source="column", column="boxes", least_side=0.2)
    found = regions_of(image, section, boxes)
    assert found.tolist() == [[0, 0, 40, 40], [50, 20, 80, 50], [10, 30, 60, 60]]
    fewer = section.changed(most=2)
    assert regions_of(image, fewer, boxes).tolist() == found[:2].tolist()
    pixels = section.changed(least_side=31)
    assert regions_of(image, pixels, boxes).tolist() == [[0, 0, 40, 40]]


def test_segments_find_the_things_of_a_scene() -> None:
    pytest.importorskip("skimage", reason="the extra regions is not installed")
    section = Regions(source="felzenszwalb", segment_side=96, segment_pixels=40)
    for seed, boxes in enumerate(SCENES):
        image = decode(scene(boxes, seed), max_pixels=10**6)
        found = regions_of(image, section, None)
        assert len(found) <= section.most
        # Segments end in the blur at an edge.
        for box in boxes:
            assert np.abs(found - box).max(axis=1).min(initial=99) <= 4, (seed, box, found)
        if not boxes:
            assert not len(found)
        assert np.array_equal(found, regions_of(image, section, None))
        most = section.changed(most=1)
        assert np.array_equal(regions_of(image, most, None), found[:1])


def test_segments_of_a_whole_chunk(made: Chunk, tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="the extra regions is not installed")
    keys = {"column": None, "tables": None, "segment_side": 96, "segment_pixels": 40}
    for name, workers in (("one", 1), ("two", 2)):
        output = tmp_path / f"{name}.h5"
        assert made.run("--workers", workers, output=output, source="felzenszwalb", **keys) == 0
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    assert set(RegionStore(tmp_path / "one.h5").images().tolist()) == {0, 1, 3, 4}


def test_without_scikit_image_the_extra_is_named(made: Chunk, capsys, monkeypatch) -> None:
    # As if it were not there; Python's own word for a module that is not to be found.
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert made.run(source="felzenszwalb", column=None, tables=None) == 2
    assert "pip install 'mlcd[regions]'" in capsys.readouterr().err


def test_what_does_not_belong_together_is_refused(made: Chunk, tmp_path: Path, capsys) -> None:
    output, other = tmp_path / "r.h5", Embed(image_size=40, batch_size=4).to_json()
    assert made.run("--embed-config", other, output=output) == 2
    assert "give the section embed that it was made with" in capsys.readouterr().err
    manifest = image_store(tmp_path / "elsewhere" / "a-00000", 3)
    assert made.run("--images", manifest, output=output) == 2
    assert "rerun embed for chunk a-00000" in capsys.readouterr().err


def test_images_that_fail_are_counted_and_too_many_refused(
    made: Chunk, tmp_path: Path, capsys
) -> None:
    """Images that were decoded for embed, and are not here: too many pixels for the section."""
    output = tmp_path / "r.h5"
    smaller = EMBED.model_copy(update={"max_pixels": 96 * 64 - 1}).to_json()
    for _ in range(2):  # the next attempt, of which all parts are there, is as strict
        assert made.run("--embed-config", smaller, output=output) == 2
        assert "of 5 images 5 failed (too_large 5), more than regions.max_failed = 0.01" in (
            capsys.readouterr().err
        )
    assert not output.exists()
    assert made.run("--embed-config", smaller, output=output, max_failed=1) == 0
    keys, reasons = RegionStore(output).failed()
    assert keys.tolist() == [b"%09d" % row for row in range(5)]
    assert reasons.tolist() == [b"too_large"] * 5


def test_a_store_without_boxes_or_with_others_is_refused(made: Chunk, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'box' is missing"):
        RegionStore(made.embeddings)
    path = tmp_path / "r.h5"
    path.write_bytes(made.output.read_bytes())
    with h5py.File(path, "r+") as file:
        file["box"][0] = [0.5, 0, 0.2, 1]
    store = RegionStore(path)
    with pytest.raises(UserError, match="'box' is not what was written"):
        store.boxes()

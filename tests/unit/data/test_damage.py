"""Damage of every kind of file, through its reader: noticed in one line, or without effect."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from helpers.builders import (
    centroids_file,
    change_record,
    embeddings_file,
    image_store,
    labels_file,
    unit_vectors,
)
from mlcd.config.prepare import Prepare
from mlcd.data import hdf5
from mlcd.data.centroids import Centroids
from mlcd.data.embeddings import Embeddings
from mlcd.data.image_store import TABLE, ImageStore, fingerprint
from mlcd.data.labels import Labels
from mlcd.models import trainable
from mlcd.stages.ablate.runs import read_baselines
from mlcd.stages.download.url_list import UrlList
from mlcd.stages.evaluate import cached
from mlcd.stages.evaluate.features import KIND
from mlcd.stages.evaluate.summary import COLUMNS
from mlcd.stages.export.card import _results
from mlcd.stages.prepare.chunks import write_chunk
from mlcd.stages.report import provenance, verdict
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_file
from mlcd.utils.records import read_csv, read_record, write_csv, write_record

#: Bits that are flipped, and lengths that are cut to, of each file.
FLIPS, CUTS = 25, 6


def images(folder: Path) -> Any:
    store = ImageStore(folder / "c-00000")
    rows = store.arrived(["caption"])
    places = zip(rows["tar"], rows["offset"], rows["size"], rows["sha256"], strict=True)
    found = [store.read(tar, offset, size, int(sha[:16], 16)) for tar, offset, size, sha in places]
    return store.fingerprint, store.manifest["counts"], rows.to_dict("list"), found


def embeddings(folder: Path) -> Any:
    file = Embeddings(folder / "e.h5")
    rest = [*file.places(), file.keys(), *file.failed()]
    return file.attributes, file.fingerprint, file.read().tolist(), [a.tolist() for a in rest]


def labels(folder: Path) -> Any:
    file = Labels(folder / "l.h5")
    about = file.chunk, file.num_classes, file.embeddings, file.centroids, file.section
    columns = file.label(), file.similarity(), file.gap()
    return about, file.fingerprint, [column.tolist() for column in columns]


def centroids(folder: Path) -> Any:
    file = Centroids(folder / "k.h5")
    columns = file.array, file.sizes, file.objective, file.empty
    return file.model, file.section, file.fingerprint, [column.tolist() for column in columns]


def features(folder: Path) -> Any:
    data = cached.read(folder / "f.h5", "cpu")
    return data.model, data.seed, data.feature.tolist(), data.label.tolist(), data.key


def encoder(folder: Path) -> Any:
    state = trainable.load(folder / "train").state_dict()
    return (
        trainable.read_description(folder / "train"),
        sha256_file(folder / "train" / trainable.WEIGHTS),
        len(state),
    )


def urls(folder: Path) -> Any:
    return list(UrlList(folder / "u-00000.parquet").batches(4))


def scores(folder: Path) -> Any:
    return read_baselines([str(folder / "scores.json")])


def summary(folder: Path) -> Any:
    path = str(folder / "summary.csv")
    return _results(path, "e" * 64), verdict.read(path).to_dict("list")


@dataclass(frozen=True)
class File:
    """A kind of file: where it is, who reads it, and how often it is damaged."""

    name: str
    reader: Callable[[Path], Any]
    share: float = 1.0


FILES = [
    File("c-00000/00000.tar", images),
    File("c-00000/rows.parquet", images),
    File("c-00000/manifest.json", images),
    File("u-00000.parquet", urls),
    File("u-00000.json", urls),
    File("e.h5", embeddings),
    File("l.h5", labels),
    File("k.h5", centroids),
    File("f.h5", features),
    File("train/encoder.safetensors", encoder, 0.1),
    File("train/encoder.json", encoder, 0.3),
    File("scores.json", scores),
    File("summary.csv", summary),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One file of each kind, as small as it can be."""
    folder = tmp_path_factory.mktemp("whole")
    manifest = image_store(folder / "c-00000", 6, rows_per_tar=4)
    vectors = unit_vectors(6, 4)
    made = embeddings_file(folder / "e.h5", vectors, manifest=manifest)
    centroids_file(folder / "k.h5", unit_vectors(5, 4))
    labels_file(folder / "l.h5", np.arange(12).reshape(6, 2) % 5, 5, made)
    columns = {
        "feature": vectors, "key": np.array([b"k%d" % row for row in range(6)]),
        "split": np.array([0, 0, 0, 1, 2, 2], np.int8), "label": np.array([0, 1] * 3, np.int32),
        "class_name": np.array([b"a", b"b"]), "tag": np.zeros((0, 2), np.int32),
        "tag_name": np.zeros(0, "S1"), "group": np.full(6, -1, np.int32),
        "group_name": np.zeros(0, "S1"), "failed_key": np.zeros(0, "S1"),
        "failed_reason": np.zeros(0, "S1"),
    }  # fmt: skip
    hdf5.write(folder / "f.h5", KIND, columns, {"model": "pixels", "dataset": "few", "seed": 0})
    trainable.save(trainable.build("test_vit", 8, 32), folder / "train", {"steps": 3})
    rows = [(f"http://a.org/{row}".encode(), b"a caption", b"") for row in range(10)]
    section = Prepare(hash_column=None)
    write_chunk(
        folder / "u-00000.parquet", rows, section, source="u", identity="", start=0, stop=10
    )
    few = {"few": {"scores": {"knn_20": 0.5123, "linear_probe": 0.61}, "chance": {}}}
    write_record(folder / "scores.json", {"model": "pixels", "seed": 0, "datasets": few})
    row = ["trained", "few", "knn_20", "0.5123", "0", "higher", "", "", "e" * 64]
    write_csv(folder / "summary.csv", COLUMNS, [row, ["random", *row[1:-1], ""]])
    return folder


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_flipped_bit_or_a_cut_end_is_noticed_or_changes_nothing(folder, file):
    path = folder / file.name
    good, whole = file.reader(folder), path.read_bytes()
    # Most of a small HDF5 file is room that is not used yet.
    used = np.flatnonzero(np.frombuffer(whole, np.uint8))
    draw = random.Random(file.name)
    noticed = 0
    damages = [("flip", int(draw.choice(used))) for _ in range(int(FLIPS * file.share))]
    damages += [("cut", draw.randrange(int(used[-1]))) for _ in range(int(CUTS * file.share) + 1)]
    try:
        for kind, place in damages:
            with path.open("r+b") as handle:
                if kind == "cut":
                    handle.truncate(place)
                else:
                    handle.seek(place)
                    handle.write(bytes([whole[place] ^ (1 << draw.randrange(8))]))
            try:
                assert file.reader(folder) == good, f"{kind} at byte {place} went unnoticed"
            except UserError as error:
                noticed += 1
                assert "\n" not in str(error)
                assert Path(file.name).stem in str(error) or path.parent.name in str(error)
            with path.open("r+b") as handle:
                handle.truncate(len(whole))
                if kind == "flip":
                    handle.seek(place)
                    handle.write(whole[place : place + 1])
                else:
                    handle.write(whole)
    finally:
        path.write_bytes(whole)
    assert noticed


def test_an_edit_that_renews_the_checksums_of_blocks_is_noticed(tmp_path):
    files = {"e.h5": "embedding", "k.h5": "centroid"}
    embeddings_file(tmp_path / "e.h5", unit_vectors(6, 4))
    centroids_file(tmp_path / "k.h5", unit_vectors(5, 4))
    for name, dataset in files.items():
        with h5py.File(tmp_path / name, "r+") as file:
            file[dataset][0] = file[dataset][1]
        with pytest.raises(UserError, match=f"{name}.*{dataset}.*not what was written"):
            hdf5.verified_fingerprint(tmp_path / name)
        with pytest.raises(UserError, match=f"{name}.*not what was written"):
            provenance._hash(str(tmp_path / name))
    with pytest.raises(UserError, match=r"k.h5.*not what was written"):
        _ = Centroids(tmp_path / "k.h5").array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tar": 7}, "row 000000001 names a place that no tar of the chunk has"),
        ({"tar": 1}, "images of 00000.tar, and manifest.json counts 4"),
        ({"offset": 10**6}, "row 000000001 names a place"),
        ({"status": "failed"}, "3 images of 00000.tar, and manifest.json counts 4"),
        (None, "3 images of 00000.tar, and manifest.json counts 4"),
    ],
)
def test_rows_that_do_not_add_up_are_refused_by_name(tmp_path, change, message):
    """Even where the table's hash is renewed."""
    manifest = image_store(tmp_path / "c-00000", 6, rows_per_tar=4)
    table = manifest.parent / TABLE
    frame = pd.read_parquet(table)
    if change is None:
        frame = frame.drop(index=1)
    for name, value in (change or {}).items():
        frame.loc[1, name] = value
    frame.to_parquet(table, index=False)
    about = read_record(manifest, "download") | {"table": sha256_file(table)}
    change_record(manifest, table=about["table"], fingerprint=fingerprint(about))
    with pytest.raises(UserError, match=message):
        ImageStore(manifest).arrived()


def test_an_edited_number_is_refused_and_blanks_change_nothing(tmp_path):
    write_record(tmp_path / "a.json", {"model": "trained", "by": {10: 0.5, 9: 0.25}})
    write_csv(tmp_path / "a.csv", ["model", "value"], [["trained", "0.5"], ["chance, all", None]])
    assert read_record(tmp_path / "a.json", "x") == {
        "model": "trained",
        "by": {"10": 0.5, "9": 0.25},
    }
    assert read_csv(tmp_path / "a.csv", "x")[1] == {"model": "chance, all", "value": ""}
    for name, read in (("a.json", read_record), ("a.csv", read_csv)):
        path = tmp_path / name
        text = path.read_text()
        path.write_text(text + "\n" * (name == "a.json"))
        read(path, "x")
        path.write_text(text.replace("0.5", "0.9"))
        with pytest.raises(UserError, match=f"{name}: not what was written.*rerun evaluate"):
            read(path, "evaluate")
        for damaged in (text.partition("\n")[0], "\n" + text.replace("{", "", 1), ""):
            path.write_text(damaged)
            with pytest.raises(UserError, match=name):
                read(path, "evaluate")

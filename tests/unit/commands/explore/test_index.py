"""The index of `mlcd explore`: its values by the plain way, its bytes, its place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import h5py
import numpy as np
import pytest

from helpers.builders import image_store, jpeg, labels_file, set_attributes
from helpers.explore_runs import NO_ENCODER, ExploreRun, K, L, N, opened
from helpers.explored_runs import write_run
from helpers.refusals import refused
from mlcd.cli import main
from mlcd.commands.explore import build, duplicates, merging
from mlcd.commands.explore.index import TILE, open_index
from mlcd.commands.explore.layout import SIDE, layout
from mlcd.commands.explore.runs import Run
from mlcd.commands.explore.store import RECORD
from mlcd.data import hdf5
from mlcd.data.image_store import ImageStore
from mlcd.utils.errors import UserError


def test_clusters_hold_their_images_nearest_first(explored, looked):
    index = looked[1]
    assert (index.K, index.n) == (K, N)
    for cluster in range(K):
        numbers, similarity = index.members(cluster, 0, N)
        assert numbers.tolist() == explored.members(cluster).tolist()
        assert (similarity == explored.similarity[numbers, 0]).all()
        assert index.members(cluster, 2, 3)[0].tolist() == explored.members(cluster)[2:5].tolist()
    assert index.columns["size"][-1] == 0


def test_values_of_clusters_are_those_of_the_plain_way(explored, looked):
    columns = looked[1].columns
    first, value = explored.label[:, 0], explored.similarity[:, 0].astype(np.float64)
    assert columns["size"].tolist() == np.bincount(first, minlength=K).tolist()
    assert columns["use"].tolist() == np.bincount(explored.label.ravel(), minlength=K).tolist()
    mean = [value[first == c].mean() if (first == c).any() else np.nan for c in range(K)]
    np.testing.assert_allclose(columns["cohesion"], mean, rtol=1e-6)
    cosine = explored.centers @ explored.centers.T
    np.fill_diagonal(cosine, -2)
    np.testing.assert_allclose(columns["gap"], 1 - cosine.max(axis=1), atol=1e-6)
    for cluster in range(K):
        ids, values = looked[1].neighbors(cluster)
        assert ids.tolist() == np.argsort(-cosine[cluster], kind="stable")[: K - 1].tolist()
        np.testing.assert_allclose(values, cosine[cluster, ids], atol=1e-6)


def test_orders_fall_and_unknown_values_come_last(looked):
    index = looked[1]
    for name, order in index.orders.items():
        assert sorted(order.tolist()) == list(range(K))
        values = index.columns[name][order].astype(np.float64)
        known = values[~np.isnan(values)]
        assert (np.diff(known) <= 0).all() and not np.isnan(values[: len(known)]).any()


def test_copies_are_found_and_others_are_not(explored, looked):
    """Each chunk's last image is its first: those two of their cluster are duplicates."""
    share = looked[1].columns["duplicates"]
    copies = {n for c in range(3) for n in (20 * c, 20 * c + 19)}
    for cluster in range(K - 1):
        mine = set(explored.members(cluster).tolist())
        assert share[cluster] == pytest.approx(len(mine & copies) / len(mine))


def test_the_estimate_of_duplicates_is_near_the_exact_share():
    """Of 400 images of a cluster, 100 in near pairs, the others far apart."""
    rng = np.random.default_rng(0)
    center = np.eye(64)[0]
    others = rng.standard_normal((350, 64)) / 8
    close = others[:50] + rng.standard_normal((50, 64)) / 50
    rows = np.concatenate([others, close]) * 0.7 + center
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    cosine = rows @ rows.T
    np.fill_diagonal(cosine, 0)
    exact = (cosine >= duplicates.NEAR).any(axis=1).mean()
    assert exact == 0.25
    centers = np.broadcast_to(center.astype(np.float32), rows.shape)
    bits = duplicates.signatures(rows, centers, duplicates.planes(64))
    assert abs(duplicates.share(bits, rows @ centers[0]) - exact) < 0.03


def test_bytes_are_the_same_however_it_is_built(explored, looked, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_MERGED", 8)
    monkeypatch.setattr(build, "_BLOCK", 7)
    monkeypatch.setattr(merging, "_SAMPLED", 2)
    monkeypatch.setattr("mlcd.commands.explore.words._MERGED", 10)
    other = opened(explored.results, tmp_path)[1]
    first = looked[1].folder
    assert other.folder.name == first.name
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in other.folder.iterdir()) and len(names) > 20
    for name in names:
        assert (first / name).read_bytes() == (other.folder / name).read_bytes(), name
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_an_index_is_built_again_when_the_run_changed(tmp_path):
    run = ExploreRun(tmp_path / "results", identity=NO_ENCODER)
    folder = run.results / "state" / "explore"
    before = open_index(Run(run.results), folder)
    again = open_index(Run(run.results), folder)
    assert again.folder == before.folder
    path = run.results / "labels" / "a-00000.h5"
    embeddings = run.results / "embeddings" / "a-00000.h5"
    centroids = hdf5.fingerprint(run.results / "clusters" / "centroids.h5")
    labels_file(path, np.zeros((20, L), np.int32), K, embeddings)
    with pytest.raises(UserError, match="made with other centroids"):
        Run(run.results)
    set_attributes(path, centroids=centroids)
    after = open_index(Run(run.results), folder)
    assert after.folder != before.folder and after.columns["size"][0] >= 20
    assert [entry.name for entry in folder.iterdir()] == [after.folder.name]


def test_an_index_is_built_again_when_images_have_come(tmp_path):
    """And is kept when they have gone: it knows their captions still."""
    explored = ExploreRun(tmp_path / "results", identity=NO_ENCODER)
    images, away = explored.results / "images", explored.results / "away"
    images.rename(away)
    _, index, answers, _ = opened(explored.results, tmp_path / "index")
    assert not index.has_images and index.texts([(0, 1)]) == [("", "")]
    index.close()
    away.rename(images)
    _, index, answers, thumbnails = opened(explored.results, tmp_path / "index")
    assert index.has_images and answers.about()["captions"]
    assert index.texts([(0, 1)])[0][0] == explored.captions[1]
    assert thumbnails.get(0, 1, 64)[:4] == b"RIFF"
    built = (index.folder / "index.json").stat().st_mtime_ns
    index.close()
    images.rename(away)
    _, index, _, _ = opened(explored.results, tmp_path / "index")
    assert (index.folder / "index.json").stat().st_mtime_ns == built
    assert index.texts([(0, 1)])[0][0] == explored.captions[1]


def test_a_folder_may_have_the_indexes_of_two_runs(explored, tmp_path):
    first = open_index(Run(explored.results), tmp_path)
    other = write_run(tmp_path / "results", k=6, l=3)
    second = open_index(Run(other), tmp_path)
    assert first.folder.is_dir() and second.folder.parent == first.folder.parent


def test_one_cluster_and_labels_of_none_are_shown(tmp_path):
    results = write_run(tmp_path / "results", k=1, l=1)
    _, index, answers, _ = opened(results, tmp_path / "index")
    assert answers.clusters("gap" if "gap" in index.known else "size", rising=True, start=0,
                            count=9)["total"] == 1  # fmt: skip
    assert answers.cluster(0, 0, 60)["neighbors"] == [] and answers.tile(0, 0, 0, "size")
    for path in (results / "labels").glob("*.h5"):
        with h5py.File(path) as file:
            about = {name: file.attrs[name] for name in ("num_classes", "embeddings", "centroids")}
            about["num_classes"] = int(about["num_classes"])
            values = {name: file[name][:] for name in file}
        values["label"][:], values["similarity"][:] = -1, 0
        hdf5.write(path, "labels", values, {"chunk": path.stem, "section": "{}"} | about)
    answers = opened(results, tmp_path / "index")[2]
    assert answers.about()["empty"] == 1
    assert answers.cluster(0, 0, 60)["images"] == [] and answers.image(1, 3)["labels"] == []


def test_a_damaged_index_is_built_again_and_files_of_others_stay(explored, tmp_path, capsys):
    first = open_index(Run(explored.results), tmp_path)
    whole = (first.folder / "members.bin").read_bytes()
    (first.folder / "members.bin").write_bytes(whole[:-1])
    again = open_index(Run(explored.results), tmp_path)
    assert (again.folder / "members.bin").read_bytes() == whole
    (again.folder / RECORD).write_text("{}")
    (again.folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files than an index"):
        open_index(Run(explored.results), tmp_path)
    assert (again.folder / "notes.txt").read_text() == "mine"


def test_a_build_that_was_killed_leaves_nothing_that_is_read(explored, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "layout", killed)
    with pytest.raises(KeyboardInterrupt):
        open_index(Run(explored.results), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_build_left_is_removed_by_the_next(explored, tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / f".building-{build._here()}-{dead.pid}"
    alive = tmp_path / f".building-{build._here()}-{os.getppid()}"
    for folder in (left, alive):
        folder.mkdir()
        (folder / "members-00000-key.npy").write_bytes(b"x")
    index = open_index(Run(explored.results), tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([alive, index.folder])


def test_tiles_of_the_map_hold_every_cluster_once(looked):
    index = looked[1]
    for z in (0, 1, 3):
        found = []
        for x in range(1 << z):
            for y in range(1 << z):
                ids, places = _parsed(index.tile(z, x, y, "size"))
                assert ((places * (1 << z) // SIDE) == [x, y]).all()
                found += ids.tolist()
        assert sorted(found) == list(range(K))


def _parsed(tile: bytes) -> tuple[np.ndarray, np.ndarray]:
    count = int(np.frombuffer(tile, "<u4", 1)[0])
    assert count <= TILE and len(tile) == 8 + 10 * count
    x = np.frombuffer(tile, "<u2", count, 8 + 4 * count)
    y = np.frombuffer(tile, "<u2", count, 8 + 6 * count)
    return np.frombuffer(tile, "<u4", count, 8), np.stack([x, y], axis=1).astype(np.int64)


def test_neighbors_lie_together_on_the_map():
    rng = np.random.default_rng(1)
    groups = np.repeat(rng.standard_normal((6, 24)), 30, axis=0)
    centers = groups + 0.25 * rng.standard_normal((180, 24))
    centers = (centers / np.linalg.norm(centers, axis=1, keepdims=True)).astype(np.float32)
    neighbors = np.argsort(-(centers @ centers.T), axis=1)[:, 1:11].astype(np.int32)
    place = layout(centers, neighbors).astype(np.float64)
    apart = np.linalg.norm(place[:, None] - place[None], axis=2)
    near = np.argsort(apart, axis=1)[:, 1:11]
    group = np.arange(180) // 30
    assert (group[near] == group[:, None]).mean() > 0.95
    assert (layout(centers, neighbors) == place).all()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_few_centers_have_a_map_too(k):
    centers = np.eye(4, dtype=np.float32)[:k]
    order = np.argsort(-(centers @ centers.T), axis=1, kind="stable")[:, 1:].astype(np.int32)
    assert layout(centers, order).shape == (k, 2)


def test_own_labels_have_neither_similarities_nor_a_map(tmp_path):
    results = tmp_path / "results"
    manifest = image_store(results / "images" / "own-00000", [jpeg(i) for i in range(6)])
    table = image_table(manifest)
    hdf5.write(
        results / "labels" / "own-00000.h5", "labels",
        {"label": np.array([[0], [1], [1], [0], [2], [-1]], np.int32), **table},
        {"chunk": "own-00000", "num_classes": 4, "section": "{}", "own": "[]",
         "manifest": json.loads(manifest.read_text())["fingerprint"]},
    )  # fmt: skip
    _, index, answers, thumbnails = opened(results, tmp_path / "index")
    assert index.known == ["size", "use"]
    assert index.members(1, 0, 9)[0].tolist() == [1, 2]
    about = answers.about()
    assert not about["map"] and not about["by_image"] and about["captions"]
    assert answers.cluster(1, 0, 9)["images"][0]["similarity"] is None
    assert answers.image(0, 4)["labels"][0]["similarity"] is None
    assert thumbnails.get(0, 3, 64)[8:12] == b"WEBP"


def image_table(manifest):
    frame = ImageStore(manifest).arrived()
    digest = np.array([int(word[:16], 16) for word in frame["sha256"]], np.uint64)
    return {
        "key": frame["key"].to_numpy().astype("S9"), "tar": frame["tar"].to_numpy(np.int32),
        "offset": frame["offset"].to_numpy(np.int64), "size": frame["size"].to_numpy(np.int64),
        "digest": digest,
    }  # fmt: skip


def test_a_run_without_its_images_still_shows_clusters(explored, tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(explored.results, copy)
    shutil.rmtree(copy / "images" / "b-00000")
    _, index, answers, thumbnails = opened(copy, tmp_path / "index")
    assert not index.has_images and answers.cluster(0, 0, 5)["images"][0]["caption"] == ""
    with pytest.raises(UserError, match="images of the run are not there"):
        thumbnails.get(0, 0, 64)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "no such folder"),
        (["."], "holds no labels"),
        ([".", "--port", "70000"], "--port"),
        ([".", "--export", "x"], "--export: needs --clusters"),
        ([".", "--clusters", "1"], "--clusters: needs --export"),
        ([".", "--images", "0"], "--images"),
    ],
)
def test_mistakes_are_told_in_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["explore", *words]) == 2
    refused(capsys, said)

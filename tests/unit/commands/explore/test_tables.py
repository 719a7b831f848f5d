"""Tables of clusters and images, and the map that they lie on."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.builders import set_attributes, unit_vectors
from helpers.explored_runs import write_run
from mlcd.cli import main
from mlcd.commands.explore import centers, tables
from mlcd.commands.explore.answers import Answers
from mlcd.commands.explore.encoder import QueryEncoder
from mlcd.commands.explore.index import open_index
from mlcd.commands.explore.layout import layout
from mlcd.commands.explore.runs import Run
from mlcd.data import hdf5
from mlcd.neighbors.two_level import group_count, group_directions
from mlcd.utils.errors import UserError
from mlcd.utils.records import write_record

SIZES, K, L = (7, 12), 6, 3


def test_rows_are_drawn_of_more_than_numpy_draws_from():
    counts = np.array([3, 2 * 10**9, 0, 10**9])
    found = tables._shares(counts, 3000, np.random.default_rng(0))
    assert found.sum() == 3000 and (found <= counts).all() and 1800 < found[1] < 2200
    assert (tables._shares(counts, int(counts.sum()), np.random.default_rng(0)) == counts).all()


@pytest.fixture
def results(tmp_path):
    return write_run(tmp_path / "results", SIZES, K, L)


def write(results, folder, **options):
    """Write the tables of a run."""
    run = Run(results)
    tables.write(run, open_index(run, results / "state" / "explore", threads=1), folder, **options)


def make_own(results, *, named):
    """Make labels the user's own; `named`: whether their summary names the centers."""
    paths = sorted((results / "labels").glob("*.h5"))
    for path in paths:
        with h5py.File(results / "embeddings" / path.name) as file:
            places = {name: file[name][:] for name in ("key", "tar", "offset", "size", "digest")}
            made_from = file.attrs["manifest"]
        label = h5py.File(path)["label"][:]
        label[1] = -1
        rewrite(path, **places, label=label, similarity=None, gap=None)
        set_attributes(path, manifest=made_from, embeddings="", centroids="")
    centers = hdf5.fingerprint(results / "clusters" / "centroids.h5")
    made = {"labels": list(map(hdf5.fingerprint, paths)), "centroids": [centers] if named else []}
    write_record(results / "labels" / "summary.json", {"made_from": made})


def rewrite(path, **datasets):
    """Write labels again with other datasets, as if their stage had."""
    with h5py.File(path) as file:
        values = {name: file[name][:] for name in file} | datasets
        about = {name: file.attrs[name] for name in file.attrs}
    about = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in about.items()
        if name not in ("fingerprint", "content", "kind")
    }
    hdf5.write(path, "labels", {k: v for k, v in values.items() if v is not None}, about)


def test_a_row_tells_what_the_labels_say_of_a_cluster(results, tmp_path):
    first, second = sorted((results / "labels").glob("*.h5"))
    near = np.linspace(0.3, 0.9, SIZES[1] * L).reshape(SIZES[1], L)[:, ::-1].astype(np.float16)
    rewrite(second, similarity=near)
    write(results, tmp_path / "out")
    found = pd.read_parquet(tmp_path / "out" / "clusters.parquet")
    label = np.concatenate([h5py.File(path)["label"][:] for path in (first, second)])
    similarity = np.concatenate([h5py.File(path)["similarity"][:] for path in (first, second)])
    names = [f"photos-{c:05d}/{row:09d}" for c, size in enumerate(SIZES) for row in range(size)]
    assert found["cluster"].tolist() == list(range(K))
    for row in found.itertuples():
        members = np.flatnonzero(label[:, 0] == row.cluster)
        assert row.size == len(members)
        assert row.use == (label == row.cluster).sum()
        if not len(members):
            assert np.isnan(row.cohesion) and row.image is None
            continue
        scores = similarity[members, 0].astype(float)
        assert row.cohesion == pytest.approx(scores.mean(), abs=1e-6)
        assert row.image == names[members[np.argmax(scores)]]
        assert row.caption.startswith("<i>caption</i>") and row.url.startswith("http://")


def test_neighbors_are_the_nearest_other_centers(results, tmp_path):
    write(results, tmp_path / "out")
    found = pd.read_parquet(tmp_path / "out" / "clusters.parquet")
    rows = h5py.File(results / "clusters" / "centroids.h5")["centroid"][:].astype(float)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -2)
    for row in found.itertuples():
        order = np.argsort(-cosines[row.cluster], kind="stable")[: K - 1]
        assert row.neighbors["ids"].tolist() == order.tolist()
        assert row.neighbors["distances"] == pytest.approx(1 - cosines[row.cluster][order])
        assert row.gap == pytest.approx(1 - cosines[row.cluster].max())
        assert max(abs(row.x), abs(row.y)) <= 1


def test_images_have_their_labels_and_lie_among_them(results, tmp_path):
    write(results, tmp_path / "out")
    images = pd.read_parquet(tmp_path / "out" / "images.parquet")
    clusters = pd.read_parquet(tmp_path / "out" / "clusters.parquet")
    labels = h5py.File(results / "labels" / "photos-00001.h5")["label"][:]
    mine = images[images["image"].str.startswith("photos-00001/")]
    assert len(images) == sum(SIZES) and len(mine) == SIZES[1]
    assert mine["label"].tolist() == labels[:, 0].tolist()
    assert [row.tolist() for row in mine["other_labels"]] == labels[:, 1:].tolist()
    assert mine["caption"].iloc[4] == "<i>caption</i> 1 4"
    reach = 0.3 * 2 / K**0.5 + 1e-6
    for axis in "xy":
        own = clusters[axis].to_numpy()[labels]
        assert (mine[axis] >= own.min(axis=1) - reach).all()
        assert (mine[axis] <= own.max(axis=1) + reach).all()


def test_a_sample_is_a_part_of_all_and_repeats(results, tmp_path):
    for name, options in (
        ("all", {"images": 900}), ("few", {"images": 5}), ("again", {"images": 5}),
        ("other", {"images": 5, "seed": 3}),
    ):  # fmt: skip
        write(results, tmp_path / name, **options)
    frames = {path.parent.name: pd.read_parquet(path) for path in tmp_path.glob("*/images.parquet")}
    few, every = frames["few"], frames["all"]
    assert len(few) == 5 and len(every) == sum(SIZES)
    same = every[every["image"].isin(few["image"])].reset_index(drop=True)
    assert same.astype(str).equals(few.astype(str))
    assert frames["other"]["image"].tolist() != few["image"].tolist()
    for table in ("clusters.parquet", "images.parquet"):
        assert (tmp_path / "few" / table).read_bytes() == (tmp_path / "again" / table).read_bytes()


def test_own_labels_say_not_how_near_an_image_is(results, tmp_path):
    make_own(results, named=True)
    write(results, tmp_path / "out")
    clusters = pd.read_parquet(tmp_path / "out" / "clusters.parquet")
    images = pd.read_parquet(tmp_path / "out" / "images.parquet")
    assert clusters["cohesion"].isna().all() and images["similarity"].isna().all()
    assert clusters["size"].sum() == sum(SIZES) - 2 and images["label"].isna().sum() == 2
    assert images[["x", "y"]].notna().all(axis=None)


def test_own_labels_have_a_map_if_their_summary_names_the_centers(results, tmp_path):
    """And none else: centers that lie there may be of another run."""
    ours = Run(results)
    plain = open_index(ours, tmp_path / "plain", threads=1)
    make_own(results, named=True)
    run = Run(results)
    index = open_index(run, tmp_path / "index", threads=1)
    assert run.centroids is not None and not run.has_similarity
    np.testing.assert_array_equal(index.map(), plain.map())
    assert "gap" in index.known and "cohesion" not in index.known
    encoder = QueryEncoder(run, None, device="cpu", threads=1, max_pixels=10**6)
    answers = Answers(run, index, encoder)
    assert answers.about()["map"]
    found = answers.nearest(run.centroids.array[2])
    assert found["clusters"][0]["id"] == 2 and found["images"] == []
    make_own(results, named=False)
    run = Run(results)
    index = open_index(run, tmp_path / "index", threads=1)
    assert run.centroids is None and index.map() is None
    with pytest.raises(UserError, match="the user's own and of no centers"):
        write(results, tmp_path / "out")


def test_texts_of_any_length_of_rows_are_those_of_the_images(results, tmp_path, monkeypatch):
    """However few are looked up at once, and in whatever blocks clusters are written."""
    write(results, tmp_path / "whole")
    monkeypatch.setattr(tables, "_TEXTS", 2)
    monkeypatch.setattr(tables, "_BLOCK", 4)
    write(results, tmp_path / "parts")
    for name in (tables.CLUSTERS, tables.IMAGES):
        whole, parts = (pq.read_table(tmp_path / one / name) for one in ("whole", "parts"))
        assert whole.equals(parts)
    images = pq.read_table(tmp_path / "parts" / tables.IMAGES).to_pylist()
    expected = [f"<i>caption</i> {c} {row}" for c, size in enumerate(SIZES) for row in range(size)]
    assert [image["caption"] for image in images] == expected


def test_what_is_missing_or_of_others_is_said(results, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    pq.write_table(pa.table({"mine": [1]}), out / "images.parquet")
    with pytest.raises(UserError, match=r"images\.parquet: is there and was not written by mlcd"):
        write(results, out)
    images = results / "images" / "photos-00001"
    images.rename(results / "elsewhere")
    with pytest.raises(UserError, match="no images of chunk photos-00001, and --tables names"):
        write(results, tmp_path / "new")
    (results / "clusters" / "centroids.h5").unlink()
    with pytest.raises(UserError, match=r"centroids\.h5: no such file"):
        write(results, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_few_centers_and_doubles_have_neighbors_and_places(k):
    center = np.repeat(unit_vectors(1, 4, seed=0), k, axis=0)
    near, cosines = centers.neighbors(center, center[:1])
    assert near.shape == cosines.shape == (k, k - 1)
    assert not (near == np.arange(k)[:, None]).any()
    assert layout(center, near).shape == (k, 2)


def test_many_centers_find_their_neighbors_by_groups(monkeypatch):
    rows = unit_vectors(900, 16, groups=30, seed=2)
    groups = group_directions(rows, group_count(len(rows)))
    exact, _ = centers.neighbors(rows, groups)
    monkeypatch.setattr(centers, "_EXACT_UP_TO", 100)
    found, _ = centers.neighbors(rows, groups)
    assert (found[:, :1] == exact[:, :1]).mean() > 0.9


def test_the_command_line_writes_them(results, tmp_path, capsys):
    write(results, tmp_path / "called", images=5)
    assert main(["explore", str(results), "--tables", str(tmp_path / "out"), "--images", "5"]) == 0
    for name in (tables.CLUSTERS, tables.IMAGES):
        written, called = ((tmp_path / one / name).read_bytes() for one in ("out", "called"))
        assert written == called
    words = ["explore", str(results), "--tables", "a", "--export", "b", "--clusters", "1"]
    assert main(words) == 2
    assert "--tables: without --export" in capsys.readouterr().err

"""The join of stores that training reads, and what is refused."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from helpers.builders import centroids_file, embeddings_file, image_store, labels_file, unit_vectors
from helpers.train_stores import CLASSES, arguments, stores
from mlcd.config.train import Train
from mlcd.launch.options import Resources
from mlcd.stages.train import inputs, plan
from mlcd.utils.errors import UserError


def test_training_reads_the_first_labels_alone(tmp_path):
    paths = stores(tmp_path)
    checked = inputs.check(
        paths["labels"], paths["embeddings"], paths["images"], paths["centroids"]
    )
    inputs.build_index(checked, tmp_path / "all")
    inputs.build_index(checked, tmp_path / "two", 2)
    whole, two = inputs.Index(tmp_path / "all"), inputs.Index(tmp_path / "two")
    assert whole.label.shape == (64, 3) and np.array_equal(two.label, whole.label[:, :2])
    assert np.array_equal(two.place, whole.place)
    with pytest.raises(UserError, match=r"train\.positives: 4 of 3 labels"):
        inputs.build_index(checked, tmp_path / "four", 4)


def check(paths):
    return inputs.check(paths["labels"], paths["embeddings"], paths["images"], paths["centroids"])


def test_index_holds_every_labeled_image_in_the_order_of_the_tars(tmp_path):
    paths = stores(tmp_path)
    assert inputs.build_index(check(paths), tmp_path / "index") == 64
    index = inputs.Index(tmp_path / "index")
    assert index.counts.tolist() == [9, 9, 9, 9, 4, 9, 9, 6] and len(index.tars) == 5 + 3
    seen = []
    for chunk in range(2):
        with h5py.File(paths["labels"][chunk]) as file:
            seen.append(file["label"][:])
    assert np.array_equal(index.label, np.concatenate(seen))
    with h5py.File(paths["embeddings"][1]) as file:
        place = index.place[40:]
        assert np.array_equal(place["offset"], file["offset"][:])
        assert np.array_equal(place["tar"], file["tar"][:] + 5)
    # The order of options does not matter.
    shuffled = {name: p if isinstance(p, str) else p[::-1] for name, p in paths.items()}
    inputs.build_index(check(shuffled), tmp_path / "again")
    for name in ("place.bin", "label.bin"):
        assert (tmp_path / "index" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_images_without_a_label_are_left_out(tmp_path):
    paths = stores(tmp_path)
    labels = np.full((24, 3), -1)
    labels[5] = [3, -1, -1]
    labels_file(tmp_path / "labels" / "c-00001.h5", labels, CLASSES, paths["embeddings"][1])
    assert inputs.build_index(check(paths), tmp_path / "index") == 41


def test_stale_files_are_refused_by_name(tmp_path):
    paths = stores(tmp_path)
    image_store(tmp_path / "images" / "c-00001", 24, rows_per_tar=9, seed=77)
    with pytest.raises(UserError, match=r"embeddings/c-00001\.h5: made from other images"):
        check(paths)
    vectors = unit_vectors(24, 16, seed=50)
    embeddings_file(
        tmp_path / "embeddings" / "c-00001.h5", vectors,
        manifest=tmp_path / "images" / "c-00001" / "manifest.json",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"labels/c-00001\.h5: made from other embeddings"):
        check(paths)


def test_missing_double_and_foreign_files_are_refused(tmp_path):
    paths = stores(tmp_path)
    with pytest.raises(UserError, match="c-00001 has no labels"):
        check({**paths, "labels": paths["labels"][:1]})
    with pytest.raises(UserError, match=r"labels/c-00001\.h5: no --images given"):
        check({**paths, "images": paths["images"][:1]})
    with pytest.raises(UserError, match="given twice"):
        check({**paths, "labels": paths["labels"] * 2})
    centroids_file(tmp_path / "other.h5", unit_vectors(CLASSES + 1, 16))
    with pytest.raises(UserError, match=r"12 classes, but .*other\.h5 has 13"):
        check({**paths, "centroids": str(tmp_path / "other.h5")})


@pytest.mark.parametrize(
    "section, options, expected",
    [
        ({"batch_size": 15}, {}, r"train.batch_size: 15 does not divide by 2"),
        ({"batch_size": 16}, {"micro_batch": 3}, r"--micro-batch: 3"),
        ({"batch_size": 128}, {}, r"only 64 have labels"),
        ({"batch_size": 16}, {"high_res_micro_batch": 3}, r"--high-res-micro-batch: 3"),
        ({"batch_size": 16}, {"keep": 0}, r"--keep"),
        ({"batch_size": 16}, {"memory_limit": "much"}, r"--memory-limit: 'much' is no size"),
        ({"model": "mixer_s32_224", "high_res_image_size": 96}, {}, r"^train.high_res_image_size"),
    ],
)
def test_plans_that_do_not_fit_are_refused(tmp_path, section, options, expected):
    paths = stores(tmp_path)
    with pytest.raises(UserError, match=expected):
        plan(arguments(paths, tmp_path / "out", **options), Train(**section),
             Resources(ranks_per_node=2))  # fmt: skip


def test_index_records_no_label_at_all(tmp_path):
    paths = stores(tmp_path, sizes=(6,))
    labels_file(tmp_path / "labels" / "c-00000.h5", np.full((6, 2), -1), CLASSES,
                paths["embeddings"][0])  # fmt: skip
    with pytest.raises(UserError, match="no image has a label"):
        inputs.build_index(check(paths), tmp_path / "index")
    assert json.loads((tmp_path / "index" / "index.json").read_text())["counts"] == [0]


def test_a_damaged_index_is_written_again(tmp_path):
    paths = stores(tmp_path)
    inputs.build_index(check(paths), tmp_path / "index")
    files = {path: path.read_bytes() for path in (tmp_path / "index").iterdir()}
    for path, whole in files.items():
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        inputs.build_index(check(paths), tmp_path / "index")
        assert {path: path.read_bytes() for path in files} == files

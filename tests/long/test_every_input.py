"""Each kind of input goes through the whole workflow, to the report, on real images.

make test-long TESTS=tests/long/test_every_input.py     prints the time of each
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from helpers.checkout import ROOT, Checkout
from helpers.local_images import class_folders, hugging_face, webdataset
from helpers.own_rows import clip_retrieval
from mlcd.data.image_store import ImageStore
from mlcd.data.labels import Labels
from mlcd.data.members import labeled_members
from mlcd.utils.files import sha256_file

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.long,
    pytest.mark.skipif(
        not (ROOT / "demo" / "openclipart.tar").exists(), reason="demo/openclipart.tar is missing"
    ),
    pytest.mark.timeout(900),
]

#: Images of a run, in chunks of 24; classes of own labels.
IMAGES, CLASSES = 48, 6
COMMON: dict[str, Any] = {"prepare": {"chunk_rows": 24}, "evaluate": {"datasets": []}}
#: Kind → metadata, and what else its config says beside COMMON.
KINDS: dict[str, dict[str, Any]] = {
    "class-folders": {"metadata": ["photos"]},
    "img2dataset-tars": {"metadata": ["tars"]},
    "parquet": {"metadata": ["set/train.parquet"]},
    "own-embeddings": {
        "metadata": ["tars"], "embed": {"embeddings": ["clip"], "key": "image_path"},
    },
    "own-embeddings-by-order": {"metadata": ["photos"], "embed": {"embeddings": ["e.npy"]}},
    "own-centers": {"metadata": ["photos"], "cluster": {"centers": "centers.npy"}},
    "own-labels": {
        "metadata": ["photos"], "label": {"labels": ["labels.parquet"], "key": "path", "top": 1},
        "cluster": {"k": CLASSES}, "train": {"center_init": "random"},
    },
}  # fmt: skip


class Place:
    """A checkout, its images in all forms, and the time of each run."""

    def __init__(self, folder: Path) -> None:
        self.checkout = Checkout(folder)
        self.folder = folder
        members = labeled_members(ROOT / "demo/openclipart.tar")
        train = ((key, data) for key, data, fields in members if fields["split"] == "train")
        self.images = dict(item for item, _ in zip(train, range(IMAGES), strict=False))
        self.times: dict[str, float] = {}
        class_folders(folder / "photos", self.images, CLASSES)
        captions = {name: f"a {name}" for name in self.images}
        webdataset(folder / "tars/00000.tar", self.images, captions)
        values = [{"bytes": data, "path": ""} for data in self.images.values()]
        hugging_face(folder / "set/train.parquet", values)

    def run(self, kind: str, *options: str) -> Path:
        """Run a kind to the report, or as far as `options` say; return its results."""
        results = f"results/{kind}"
        changes = {name: dict(v) if isinstance(v, dict) else v for name, v in COMMON.items()}
        for name, keys in KINDS[kind].items():
            changes[name] = {**changes.get(name, {}), **keys} if isinstance(keys, dict) else keys
        self.checkout.configure(**changes, results=results)
        began = time.monotonic()
        done = self.checkout.snakemake("--cores", "2", *options, timeout=800)
        self.times[kind] = time.monotonic() - began
        words = " ".join(["mlcd run --profile profiles/local", *options])
        print(f"\n{kind}: {self.times[kind]:.0f} s ({words})")
        assert done.returncode == 0, done.stdout[-6000:]
        return self.folder / results


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("every") / "checkout")


def is_whole(results: Path, steps: int = 2 * (IMAGES // 16)) -> None:
    """Check that a run went to its end on all images."""
    about = json.loads((results / "train/encoder.json").read_text())
    assert about["steps"] == steps
    assert json.loads((results / "export/timm/check.json").read_text())["format"] == "timm"
    for page in ("download", "label", "montage", "examples", "train", "provenance", "efficiency"):
        assert (results / "report" / f"{page}.html").stat().st_size > 1000
    arrived = [len(ImageStore(path).arrived()) for path in sorted((results / "images").iterdir())]
    assert sum(arrived) == IMAGES


@pytest.mark.parametrize("kind", ["class-folders", "img2dataset-tars", "parquet"])
def test_images_on_disk(kind: str, place: Place) -> None:
    is_whole(place.run(kind))


def test_own_embeddings_give_the_same_encoder(place: Place) -> None:
    """By key from clip-retrieval's folder, and by order: as those that the stage embed makes."""
    first = place.folder / "results/img2dataset-tars"
    clip_retrieval(place.folder / "clip", sorted((first / "embeddings").glob("*.h5")), first)
    results = place.run("own-embeddings")
    is_whole(results)
    weights = "train/encoder.safetensors"
    assert sha256_file(results / weights) == sha256_file(first / weights)
    first = place.folder / "results/class-folders"
    parts = [
        h5py.File(path)["embedding"][:] for path in sorted((first / "embeddings").glob("*.h5"))
    ]
    np.save(place.folder / "e.npy", np.concatenate(parts).astype(np.float64) * 3)
    results = place.run("own-embeddings-by-order", "--until", "train")
    assert sha256_file(results / weights) == sha256_file(first / weights)


def test_own_centers_and_more_images_cost_no_clustering(place: Place) -> None:
    first = place.folder / "results/class-folders"
    with h5py.File(first / "clusters/centroids.h5") as file:
        np.save(place.folder / "centers.npy", 2 * file["centroid"][:])
    results = place.run("own-centers")
    is_whole(results)
    old = sorted((first / "labels").glob("*.h5"))
    new = sorted((results / "labels").glob("*.h5"))
    for a, b in zip(old, new, strict=True):
        np.testing.assert_array_equal(Labels(a).label(), Labels(b).label())
    # The run's own centers, kept: more images cost their chunks, their labels and the training.
    kept = "results/class-folders/clusters/centroids.h5"
    extra = place.folder / "more"
    class_folders(extra, dict(list(place.images.items())[:20]))
    changes = {**COMMON, "metadata": ["photos", "more"], "cluster": {"centers": kept}}
    place.checkout.configure(**changes, results="results/class-folders")
    stale = place.checkout.stale("--until", "label_summary", "train")
    assert stale == {
        "prepare": 1, "download": 1, "embed": 1, "label": 1, "label_summary": 1, "train": 1,
    }  # fmt: skip


def test_own_labels_need_neither_embeddings_nor_centers(place: Place) -> None:
    paths = sorted((place.folder / "photos").rglob("*.JPEG"))
    numbers = [int(path.parent.name.split()[1]) for path in paths]
    frame = pd.DataFrame({"path": [str(path) for path in paths], "label": numbers})
    frame.sample(frac=1, random_state=0).to_parquet(place.folder / "labels.parquet")
    results = place.run("own-labels")
    is_whole(results)
    assert not (results / "embeddings").exists() and not (results / "clusters").exists()
    for path in sorted((results / "labels").glob("*.h5")):
        labels, store = Labels(path), ImageStore(results / "images" / path.stem)
        classes = dict(zip(store.table()["key"], store.table()["class"], strict=True))
        found = [int(classes[key.decode()].split()[1]) for key in list(labels.keys())]
        assert found == labels.label()[:, 0].tolist()


def test_the_times(place: Place) -> None:
    """Print the table of times, for the reader of `make test-long`."""
    print("\n" + "\n".join(f"{kind:26s} {took:5.0f} s" for kind, took in place.times.items()))
    assert set(place.times) == set(KINDS)
    shutil.rmtree(place.folder / "results")

"""Whole runs that begin with images on disk, of all kinds mixed with a URL list; presets' plans."""

from __future__ import annotations

import json
import os
import shutil
import time

import pandas as pd
import pytest

from helpers.builders import jpeg
from helpers.checkout import ROOT, ROWS, Checkout, serving
from helpers.local_images import archive, class_folders, hugging_face, webdataset
from mlcd.data.image_store import ImageStore
from mlcd.data.members import labeled_members
from mlcd.utils.files import sha256_file

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(
        not (ROOT / "demo" / "openclipart.tar").exists(), reason="demo/openclipart.tar is missing"
    ),
    pytest.mark.timeout(900),
]

#: Images of each kind.
EACH = 7
#: A chunk per entry, and no scores: what begins otherwise is what is looked at.
CHANGES = {
    "metadata": ["lists/third.parquet", "my photos", "old/*.tar"],
    "prepare": {"chunk_rows": 40},
    "evaluate": {"datasets": []},
}


def settle(checkout: Checkout) -> None:
    """Date the folders of images back, as those of people are."""
    past = time.time() - 60
    for name in ("my photos", "old"):
        for folder, _, _ in os.walk(checkout.folder / name):
            os.utime(folder, (past, past))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    base = tmp_path_factory.mktemp("local")
    checkout = Checkout(base / "checkout")
    images = {key: data for key, data, fields in labeled_members(ROOT / "demo/openclipart.tar")
              if fields["split"] == "train"}  # fmt: skip
    names = iter(images)
    some = [{name: images[name] for _, name in zip(range(EACH), names, strict=False)}
            for _ in range(4)]  # fmt: skip
    photos = checkout.folder / "my photos"
    class_folders(photos, some[0])
    (photos / "class 0" / "bad.jpg").write_bytes(b"no image")
    hugging_face(photos / "x.parquet", [{"bytes": data, "path": ""} for data in some[1].values()])
    archive(photos / "y.zip", some[2])
    webdataset(checkout.folder / "old/00000.tar", some[3], {name: f"a {name}" for name in some[3]})
    settle(checkout)
    with serving(base / "site") as url:
        checkout.write_images(url, base / "site")
        checkout.configure(**CHANGES)
        done = checkout.snakemake("--cores", "2", timeout=800)
    assert done.returncode == 0, done.stdout[-6000:]
    return checkout


@pytest.mark.long
def test_a_mixed_run_leaves_one_store_per_chunk_and_all_results(finished):
    results = finished.folder / "results"
    stores = {path.name: ImageStore(path) for path in sorted((results / "images").iterdir())}
    assert {name: store.manifest["counts"] for name, store in stores.items()} == {
        "my_photos-00000": {"success": 3 * EACH, "not_an_image": 1},
        "third-00000": {"success": ROWS}, "old-00000": {"success": EACH},
    }  # fmt: skip
    assert not list((results / "images" / "old-00000").glob("*.tar"))
    captions = pd.read_parquet(results / "images" / "old-00000" / "rows.parquet").caption
    assert captions.str.startswith("a ").all()
    about = json.loads((results / "train" / "encoder.json").read_text())
    assert about["steps"] == 2 * ((ROWS + 4 * EACH) // 16)
    assert (results / "export" / "timm" / "check.json").exists()
    assert "not_an_image" in (results / "report" / "download.html").read_text()


@pytest.mark.long
def test_what_runs_again_follows_from_content(finished):
    """Nothing after a touch; what is removed, as the same bytes; a chunk with another image."""
    photos = finished.folder / "my photos"
    for path in photos.rglob("*"):
        path.touch()
    assert finished.stale() == {}
    before = sha256_file(finished.folder / "results/train/encoder.safetensors")
    shutil.rmtree(finished.folder / "results/images/old-00000")
    done = finished.snakemake("--cores", "2", "--until", "train")
    assert done.returncode == 0, done.stdout[-6000:]
    assert sha256_file(finished.folder / "results/train/encoder.safetensors") == before
    (photos / "class 1" / "new.jpg").write_bytes(jpeg(1))
    stale = finished.stale("--until", "embed")
    assert {rule: stale.get(rule) for rule in ("prepare", "download", "embed")} == {
        "prepare": 1, "download": 1, "embed": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "folder", "options"),
    [
        ("small", "mine", ["--config", "metadata=mine"]),
        ("finetune", "mine", ["--config", "metadata=mine"]),
        ("imagenet-rn50", "data/imagenet/train", []),
    ],
)
def test_presets_begin_with_folders(preset, folder, options, tmp_path):
    checkout = Checkout(tmp_path / "checkout")
    shutil.copy(ROOT / "config.yaml", checkout.folder)
    (checkout.folder / "demo").symlink_to(ROOT / "demo")
    class_folders(checkout.folder / folder, {str(i): jpeg(i) for i in range(4)})
    # As many as there are clusters, at least.
    hugging_face(checkout.folder / folder / "more.parquet", [None] * 9_996)
    done = checkout.snakemake(
        "--dry-run", "--configfile", f"workflow/presets/{preset}.yaml", *options
    )
    assert done.returncode == 0, done.stdout
    name = folder.rpartition("/")[2]
    assert " 10000 images" in done.stdout and f"images/{name}-00000/manifest.json" in done.stdout

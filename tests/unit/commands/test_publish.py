"""`mlcd publish`: a run is published, and a second project far away starts from the folder."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import h5py
import mlcroissant
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import CommitOperationAdd, DatasetCard

from helpers.builders import jpeg
from helpers.hostile_server import HostileServer, number_of
from helpers.refusals import refused
from helpers.small_runs import Run
from mlcd import cli
from mlcd.commands.publish import folder as published_folder
from mlcd.commands.publish import licenses, shards
from mlcd.data.labels import Labels
from mlcd.utils.files import sha256_file
from mlcd.utils.records import read_record, write_record

IMAGES, K, TOP = 26, 5, 2
SECTIONS = {
    "prepare": {"chunk_rows": 16, "hash_column": None},
    "cluster": {"k": K, "iterations": 3},
    "label": {"top": TOP},
}


@pytest.fixture(scope="module")
def server():
    patch = pytest.MonkeyPatch()
    patch.setenv("no_proxy", "127.0.0.1")
    with HostileServer() as running:
        yield running
    patch.undo()


@pytest.fixture(scope="module")
def first(server, tmp_path_factory):
    """A sealed run from a list of URLs, of which one is refused by its owner."""
    folder = tmp_path_factory.mktemp("first")
    urls = [server.url(f"ok/{row}.jpg") for row in range(IMAGES)] + [server.url("noai/1.jpg")]
    captions = [f"<b>image</b> | {row}" for row in range(len(urls))]
    pd.DataFrame({"url": urls, "caption": captions}).to_parquet(folder / "web.parquet")
    run = Run(folder, [str(folder / "web.parquet")], **SECTIONS)
    run.fetch()
    run.label()
    run.root = run.seal()
    return run


@pytest.fixture(scope="module")
def published(first, tmp_path_factory):
    output = tmp_path_factory.mktemp("published") / "labels"
    assert publish(first, output) == 0
    return output


def publish(run: Run, output: Path, *options: str, license: str = "cc-by-4.0") -> int:
    words = ["publish", str(run.results), "--output", str(output), "--license", license]
    return cli.main([*words, *options])


def rows(folder: Path) -> pd.DataFrame:
    files = sorted((folder / "data").glob("train-*.parquet"))
    return pa.dataset.dataset(files).to_table().to_pandas()


def config_of(folder: Path, name: str) -> dict:
    """Return a config that the card shows, for a folder that lies here."""
    text = (folder / "README.md").read_text()
    block = re.search(rf"```yaml\n# {name}\n(.*?)```", text, re.DOTALL)
    return yaml.safe_load(block[1].replace("FOLDER", str(folder)))


def labels_by_hash(run: Run) -> dict[str, list[int]]:
    found = {}
    for chunk in run.chunks:
        table = pd.read_parquet(run.results / "images" / chunk / "rows.parquet")
        hashes = dict(zip(table["key"], table["sha256"], strict=True))
        labels = Labels(run.labels(chunk))
        own = run.results / "embeddings" / f"{chunk}.h5"
        with h5py.File(own if own.exists() else run.labels(chunk)) as file:
            keys = [key.decode() for key in file["key"][:]]
        found |= {hashes[key]: row for key, row in zip(keys, labels.label().tolist(), strict=True)}
    return found


def test_it_says_what_it_is_and_no_more(first, published):
    assert sorted(path.relative_to(published).as_posix() for path in published.rglob("*.*")) == [
        "README.md", "centers/centroids.h5", "croissant.json",
        "data/train-00000-of-00001.parquet", "publish.json", "settings.yaml",
    ]  # fmt: skip
    frame = rows(published)
    assert list(frame) == ["url", "sha256", "width", "height", "label", "similarity"]
    found = {row.sha256: row.label.tolist() for row in frame.itertuples()}
    assert len(frame) == IMAGES
    assert found == labels_by_hash(first)
    assert (frame["similarity"].map(lambda values: values[0] >= values[1])).all()
    record = json.loads((published / "publish.json").read_text())
    assert record["run"] == first.root
    assert record["opt_out"] == {"refused": 1, "honored": IMAGES, "not_honored": 0, "on_disk": 0}
    for path, about in record["files"].items():
        assert sha256_file(published / path) == about["sha256"]
    # Not a word of this machine, of strangers, or of an image.
    for path in published.rglob("*.*"):
        data = path.read_bytes()
        assert str(first.results.parent).encode() not in data, path
        assert b"<b>image" not in data, path
        assert b"\xff\xd8\xff" not in data[:1000]


def test_hubs_and_loaders_take_it(first, published):
    card = DatasetCard.load(published / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data["mlcd_run"] == first.root and first.root in card.text
    (config,) = card.data["configs"]
    assert list(published.glob(config["data_files"][0]["path"]))
    assert "| 1 |" in card.text and "CC-BY-4.0" in card.text and "`web.parquet`" in card.text
    for path in published.rglob("*.*"):
        # Names that the hub refuses are refused here, without asking it.
        CommitOperationAdd(path.relative_to(published).as_posix(), str(path))
    records = list(mlcroissant.Dataset(published / "croissant.json").records("images"))
    assert len(records) == IMAGES
    assert list(records[3]["images/label"]) == rows(published)["label"][3].tolist()


def test_another_machine_trains_from_urls_and_labels(first, published, tmp_path):
    second = Run(tmp_path, **config_of(published, "labels"))
    second.fetch()
    second.label()
    assert labels_by_hash(second) == labels_by_hash(first)
    assert (second.results / "clusters" / "centroids.h5").is_file()
    second.seal()
    # And what was published once can be published again.
    assert publish(second, tmp_path / "again") == 0
    assert rows(tmp_path / "again")["label"].tolist() != []


def test_another_machine_refuses_an_image_that_is_another_now(published, tmp_path):
    shutil.copytree(published, tmp_path / "copy")
    (shard,) = (tmp_path / "copy" / "data").iterdir()
    table = pq.read_table(shard).to_pandas()
    table.loc[0, "sha256"] = "0" * 64
    table.to_parquet(shard)
    second = Run(tmp_path, **config_of(tmp_path / "copy", "labels"))
    second.fetch()
    images = pd.read_parquet(next((second.results / "images").glob("*/rows.parquet")))
    assert images["reason"].tolist() == ["hash_mismatch"] + [""] * (IMAGES - 1)


def test_another_machine_labels_other_images_by_the_centers(first, published, server, tmp_path):
    urls = [server.url(f"ok/{row}.jpg") for row in range(IMAGES - 6, IMAGES + 8)]
    pd.DataFrame({"url": urls, "caption": ""}).to_parquet(tmp_path / "more.parquet")
    config = config_of(published, "centers")
    config["metadata"] = [str(tmp_path / "more.parquet")]
    second = Run(tmp_path, **config, prepare={"hash_column": None})
    second.fetch()
    second.label()
    known, found = labels_by_hash(first), labels_by_hash(second)
    both = set(known) & set(found)
    assert len(both) >= 6 and len(found) > len(both)
    assert {key: found[key] for key in both} == {key: known[key] for key in both}


def test_images_on_disk_are_named_below_their_folder(tmp_path):
    photos = tmp_path / "secret" / "photos"
    photos.mkdir(parents=True)
    for row in range(12):
        (photos / f"{row}.jpg").write_bytes(jpeg(row))
    run = Run(tmp_path / "run", [str(photos)], **{**SECTIONS, "prepare": {}})
    run.fetch()
    run.label()
    run.seal()
    output = tmp_path / "published"
    assert publish(run, output) == 0
    assert sorted(rows(output)["path"]) == sorted(f"{row}.jpg" for row in range(12))
    assert not [path for path in output.rglob("*.*") if b"secret" in path.read_bytes()]
    config = config_of(output, "labels")
    assert config["metadata"] == ["YOUR-IMAGES"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in photos.iterdir():
        shutil.copy(path, elsewhere / f"renamed-{path.name}")
    second = Run(tmp_path / "second", **{**config, "metadata": [str(elsewhere)]})
    second.fetch()
    second.label()
    assert labels_by_hash(second) == labels_by_hash(run)


def test_resized_images_keep_the_hash_of_what_is_served(server, tmp_path):
    urls = [server.url(f"ok/{row}.jpg") for row in range(8)]
    served = [hashlib.sha256(jpeg(number_of(url))).hexdigest() for url in urls]
    listed = {"url": urls, "caption": "", "sha256": [*served[:7], None]}
    pd.DataFrame(listed).to_parquet(tmp_path / "web.parquet")
    photos = tmp_path / "photos"
    photos.mkdir()
    for row in range(4):
        (photos / f"{row}.jpg").write_bytes(jpeg(row))
    metadata = [str(tmp_path / "web.parquet"), str(photos)]
    size = {"image_size": 24, "respect_opt_out": False}
    run = Run(tmp_path / "run", metadata, cluster={"k": K}, label={"top": TOP}, download=size)
    run.fetch()
    run.label()
    run.seal()
    output = tmp_path / "published"
    assert publish(run, output) == 0
    found = rows(output).astype(object).where(lambda frame: frame.notna(), None)
    assert found["url"].tolist() == [None] * 4 + urls
    assert found["path"].tolist() == [f"{row}.jpg" for row in range(4)] + [None] * 8
    assert found["sha256"].tolist() == [None] * 4 + served[:7] + [None]
    assert set(found["stored_sha256"]) == set(labels_by_hash(run))
    card = (output / "README.md").read_text()
    assert "not honored for 8 images" in card and "| 4 |" in card
    config = config_of(output, "labels")
    assert config["label"]["key"] == "url"
    second = Run(tmp_path / "second", **config)
    second.fetch()
    second.label()
    by_url = dict(zip(found["url"], found["label"].map(list), strict=True))
    (chunk,) = second.chunks
    images = pd.read_parquet(second.results / "images" / chunk / "rows.parquet")
    assert Labels(second.labels(chunk)).label().tolist() == [by_url[url] for url in images["url"]]


def test_options_decide_what_is_told_of_images(first, published, tmp_path):
    assert publish(first, tmp_path / "hashes", "--without-urls") == 0
    assert "url" not in rows(tmp_path / "hashes")
    assert not any(
        b"http://127" in path.read_bytes() for path in (tmp_path / "hashes").rglob("*.*")
    )
    assert publish(first, tmp_path / "captions", "--captions", license="ODC-By-1.0") == 0
    assert rows(tmp_path / "captions")["caption"][3] == "<b>image</b> | 3"
    card = DatasetCard.load(tmp_path / "captions" / "README.md")
    assert card.data.license == "odc-by" and "strangers" in card.text
    assert "prepare" not in config_of(tmp_path / "captions", "labels")


def test_the_same_run_gives_the_same_bytes_and_is_not_published_twice(first, published, tmp_path):
    other = tmp_path / "other"
    assert publish(first, other) == 0
    times = {}
    for path in sorted(published.rglob("*.*")):
        twin = other / path.relative_to(published)
        assert twin.read_bytes() == path.read_bytes()
        times[twin] = twin.stat().st_mtime_ns
    assert publish(first, other) == 0
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert publish(first, other, "--captions") == 0
    assert "caption" in rows(other)
    assert not (tmp_path / "state").exists()


def test_nothing_of_others_is_replaced(first, published, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert publish(first, folder) == 2
    refused(capsys, "notes.txt: is there and was not written by mlcd")
    shutil.copytree(published, tmp_path / "edited")
    readme = tmp_path / "edited" / "README.md"
    readme.write_text(readme.read_text() + "more")
    assert publish(first, tmp_path / "edited", "--captions") == 2
    refused(capsys, "README.md: was changed since it was published")
    assert readme.read_text().endswith("more")
    assert publish(first, first.results / "public") == 2
    refused(capsys, "lies in the results")


@pytest.mark.parametrize("text", ["mine", "MIT OR Apache-2.0", "Apache-2.0+", "LicenseRef-own", ""])
def test_a_license_that_none_knows_is_refused(first, tmp_path, capsys, text):
    assert publish(first, tmp_path / "out", license=text) == 2
    refused(capsys, "--license:")
    assert not (tmp_path / "out").exists()


def test_licenses_are_called_as_hubs_call_them():
    assert licenses.parse("cc0-1.0")[:2] == ("CC0-1.0", "cc0-1.0")
    assert licenses.parse("ODbL-1.0").hub == "odbl"
    assert licenses.parse("CERN-OHL-P-2.0").hub == "other"


def test_a_run_that_is_not_as_it_was_sealed_is_refused(first, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(first.results, copy)
    labels = next(copy.glob("labels/*.h5"))
    kept = labels.read_bytes()
    with h5py.File(labels, "r+") as file:
        file.attrs["fingerprint"] = "0" * 64
    words = ["publish", str(copy), "--output", str(tmp_path / "out"), "--license", "MIT"]
    assert cli.main(words) == 2
    refused(capsys, labels.name)
    # Rows that were edited behind the seal's back are found while they are read.
    labels.write_bytes(kept)
    with h5py.File(labels, "r+") as file:
        file["label"][0] = (file["label"][0] + 1) % K
    assert cli.main(words) == 2
    refused(capsys, labels.name)
    (copy / "audit" / "lock.json").unlink()
    assert cli.main(words) == 2
    refused(capsys, "not sealed")
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_killed_continues_to_the_same_bytes(first, published, tmp_path, monkeypatch):
    output = tmp_path / "labels"
    write = published_folder.croissant.write

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(published_folder.croissant, "write", killed)
    assert publish(first, output) == 130
    assert not output.exists()
    monkeypatch.setattr(published_folder.croissant, "write", write)
    monkeypatch.setattr(shards, "blocks", lambda *_: iter(()))  # no row is read again
    assert publish(first, output) == 0
    for path in published.rglob("*.*"):
        assert (output / path.relative_to(published)).read_bytes() == path.read_bytes()


def test_a_kill_while_an_older_publication_is_replaced_loses_neither(
    first, published, tmp_path, monkeypatch
):
    """Between the two renames, and after the second, while what stood there is removed."""
    whole = {path: path.read_bytes() for path in published.rglob("*.*")}
    output = tmp_path / "labels.v1"
    state = tmp_path / "state"
    assert publish(first, output, "--captions") == 0
    older = {path.relative_to(output): path.read_bytes() for path in output.rglob("*.*")}
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    assert publish(first, output) == 130
    monkeypatch.undo()
    assert not output.exists()
    # Other options than the killed run's: what was published is there to be replaced, or kept.
    put = published_folder.put
    seen = {}

    def look(state: Path, output: Path) -> None:
        seen.update({path.relative_to(output): path.read_bytes() for path in output.rglob("*.*")})
        put(state, output)

    monkeypatch.setattr(published_folder, "put", look)
    assert publish(first, output, "--without-urls") == 0
    assert seen == older and "url" not in rows(output)

    def no_end(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(published_folder, "end", no_end)
    assert publish(first, output) == 130
    monkeypatch.undo()
    assert (state / "labels.v1.old").is_dir()
    assert publish(first, output) == 0
    assert not state.exists()
    assert {path: (output / path.relative_to(published)).read_bytes() for path in whole} == whole


def test_a_large_file_that_was_edited_is_not_replaced(first, published, tmp_path, capsys):
    """One of more than 16 MiB, and of the size that it had."""
    output = tmp_path / "labels"
    shutil.copytree(published, output)
    shard = output / "data" / "train-00000-of-00001.parquet"
    with shard.open("r+b") as file:
        file.truncate(20 << 20)
    record = read_record(output / "publish.json", "publish")
    about = {"sha256": sha256_file(shard), "bytes": shard.stat().st_size}
    record["files"]["data/train-00000-of-00001.parquet"] = about
    write_record(output / "publish.json", record)
    assert published_folder.ours(output) == record["asked"]
    with shard.open("r+b") as file:
        file.seek(18 << 20)
        file.write(b"mine")
    assert publish(first, output, "--captions") == 2
    refused(capsys, "train-00000-of-00001.parquet: was changed since it was published")
    assert not (tmp_path / "state").exists()
    with shard.open("rb") as file:
        file.seek(18 << 20)
        assert file.read(4) == b"mine"

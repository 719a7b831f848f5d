"""Montages and examples: the nearest images, their captions as text, bounded reading and size."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from helpers.builders import change_record, jpeg
from helpers.report_stores import CHUNKS, HOSTILE, K, N, Outline, Stores
from mlcd.config import Report
from mlcd.data.image_store import fingerprint
from mlcd.stages.report import gallery, montage, page
from mlcd.utils.errors import UserError
from mlcd.utils.files import read_json, sha256_json


@pytest.mark.parametrize("part", ["montage", "examples"])
def test_captions_are_text_not_markup(stores, tmp_path, part):
    extra = ("--montage-clusters", "4", "--montage-images", "12", "--label-examples", "12")
    html = "".join(
        stores.draw(part, tmp_path / f"{seed}.html", extra=(*extra, "--seed", str(seed)))
        for seed in range(4)
    )
    assert HOSTILE in Outline(html).alts
    assert "<script" not in html


def opened(stores: Stores, **keys: int) -> gallery.Gallery:
    paths = [[str(p) for p in group] for group in (stores.images, stores.embeddings, stores.labels)]
    return gallery.Gallery(Report(**keys), *paths)


def test_members_equal_a_plain_search_over_everything(stores):
    members = opened(stores).members(range(K))
    for cluster in range(K):
        plain = [i for i in range(len(CHUNKS) * N) if stores.label[i, 0] == cluster]
        plain.sort(key=lambda i: (-float(stores.similarity[i, 0]), i))
        assert members[cluster].tolist() == plain


def test_a_montage_shows_the_nearest_images_in_order(stores, tmp_path):
    html = stores.draw(
        "montage", tmp_path / "m.html", extra=("--montage-clusters", "4", "--montage-images", "3")
    )
    members = opened(stores).members(range(K))
    sizes = np.bincount(stores.label[:, 0], minlength=K)
    sections = re.findall(r"<section>.*?</section>", html, re.DOTALL)
    assert len(sections) == np.count_nonzero(sizes)
    for section in sections:
        cluster = int(re.search(r"Cluster (\d+)", section)[1])
        assert f"{sizes[cluster]} images" in section
        shown = [stores.captions[i] for i in members[cluster][:3]]
        assert Outline(section).alts == shown
        mean = np.float32(stores.similarity[members[cluster], 0]).mean()
        assert f"{mean:.3f}" in section


def test_a_tile_is_the_image_at_that_place(stores):
    view = opened(stores)
    place = gallery.ChunkRow(1, 7)  # in the second tar of the second chunk
    html = view.tiles([place], 48)[place]
    assert Outline(html).alts == [stores.captions[N + 7]]
    shown = image_of(html)
    original = Image.open(io.BytesIO(jpeg(N + 7)))
    difference = np.asarray(shown, float) - np.asarray(original, float)
    others = Image.open(io.BytesIO(jpeg(N + 6)))
    assert np.abs(difference).mean() < 12
    assert np.abs(np.asarray(shown, float) - np.asarray(others, float)).mean() > 40


def image_of(html: str) -> Image.Image:
    data = re.search(r"base64,([^\"]+)", html)[1]
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def test_an_example_is_no_evidence_for_itself(stores, tmp_path):
    html = stores.draw("examples", tmp_path / "e.html", extra=("--label-examples", "12"))
    sections = re.findall(r'<section class="example">.*?</section>', html, re.DOTALL)
    assert len(sections) == 12
    for section in sections:
        image, *others = Outline(section).alts
        index = stores.captions.index(image)
        assert image not in others
        named = [int(c) for c in re.findall(r"cluster (\d+)<br>", section)]
        assert named == stores.label[index].tolist()
        written = re.findall(r"similarity (-?\d\.\d{3})", section)
        assert written == [f"{float(s):.3f}" for s in stores.similarity[index]]


def test_only_the_configured_number_of_chunks_is_read(tmp_path):
    stores = Stores(tmp_path / "run")
    # With two of three, evenly spread, the middle one is not looked at: damage shows it.
    stores.labels[1].write_bytes(b"junk")
    stores.embeddings[1].write_bytes(b"junk")
    assert opened(stores, scan_chunks=2).chunks == [CHUNKS[0], CHUNKS[2]]
    html = stores.draw("montage", tmp_path / "m.html", extra=("--scan-chunks", "2"))
    assert "2 of 3 chunks" in html
    with pytest.raises(UserError, match="first-00001"):
        opened(stores, scan_chunks=3)


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    stores = Stores(tmp_path / "run")
    good = stores.embeddings[0].read_bytes()
    stores.embeddings[0].write_bytes(stores.embeddings[1].read_bytes())
    with pytest.raises(UserError, match=r"made from other embeddings.*rerun label"):
        opened(stores)
    stores.embeddings[0].write_bytes(good)
    values = read_json(stores.images[0])
    table = sha256_json("another")
    del values["checksum"]
    another = fingerprint({**values, "table": table})
    change_record(stores.images[0], table=table, fingerprint=another)
    with pytest.raises(UserError, match=r"made from other images.*rerun embed"):
        opened(stores)
    stores.images.pop(0)
    with pytest.raises(UserError, match="--images: chunk first-00000"):
        opened(stores)


def test_the_choice_of_clusters_has_extremes_and_chance():
    rng = np.random.default_rng(0)
    nearest = rng.choice(90, 4000, p=rng.dirichlet(np.ones(90))).astype(np.int32)
    sizes = np.bincount(nearest, minlength=100)  # ten clusters are empty
    present = np.flatnonzero(sizes)
    chosen = montage.choose(sizes, nearest, 12, 0)
    clusters = [cluster for cluster, _ in chosen]
    assert len(set(clusters)) == 12 and set(clusters) <= set(present)
    assert sizes[clusters[0]] == sizes.max() and sizes[clusters[-1]] == sizes[present].min()
    assert sorted(sizes[clusters])[::-1] == sizes[clusters].tolist()
    assert montage.choose(sizes, nearest, 12, 0) == chosen != montage.choose(sizes, nearest, 12, 1)
    for count in (1, 2, 3):
        assert len(montage.choose(sizes, nearest, count, 0)) == count
    few = np.array([3, 3, 0], np.int32)
    assert [c for c, _ in montage.choose(np.array([1, 0, 0, 2]), few, 12, 0)] == [3, 0]
    one = np.array([2], np.int32)
    assert [c for c, _ in montage.choose(np.array([0, 0, 1]), one, 12, 0)] == [2]


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_that_cannot_be_decoded_is_a_gray_tile():
    white = png(np.full((40, 40, 3), 255, np.uint8))
    for data, pixels, reason in (
        (b"", 10**6, "empty"),
        (b"<html>", 10**6, "not_an_image"),
        (white[:60], 10**6, "damaged"),
        (white, 100, "too_large"),
    ):
        html = gallery.tile(data, "caption", 48, max_pixels=pixels)
        assert f">{reason}<" in html and "img" not in html


def test_the_largest_page_keeps_to_the_limit_of_browsers():
    # Noise is the worst case for any codec, quotes for escaping.
    rng = np.random.default_rng(0)
    noise = png(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8))
    most = {field: Report.model_fields[field].metadata for field in Report.model_fields}
    clusters, images = (
        next(m.le for m in most[name] if hasattr(m, "le"))
        for name in ("montage_clusters", "montage_images")
    )
    tile = gallery.tile(noise, '"a photograph" ' * 100, 104, max_pixels=10**6)
    assert clusters * images * len(tile) + 20_000 < page.LIMIT
    assert image_of(tile).size == (104, 104)

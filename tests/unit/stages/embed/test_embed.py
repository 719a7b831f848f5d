"""Stage embed: exact output, bad images counted, dying decoders, resume to the same bytes."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from helpers import tiny_clip
from helpers.builders import add_member, image_store, jpeg, png_header
from helpers.decoders import Dying
from mlcd.config import Embed
from mlcd.data.decode import decode
from mlcd.data.decode_pool import DecodeImage
from mlcd.data.embeddings import Embeddings, open_all
from mlcd.data.image_store import ImageStore
from mlcd.data.tars import digest_of
from mlcd.models import frozen
from mlcd.models.frozen.efficientnet import EfficientNetLite0
from mlcd.stages.embed import chunk
from mlcd.stages.embed.chunk import embed
from mlcd.utils.errors import UserError

torch.set_num_threads(1)

SECTION = Embed(image_size=32, batch_size=4)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_clip.register(tmp_path_factory.mktemp("open_clip"))


def encoded(encoder, images: list[bytes]) -> torch.Tensor:
    """The plain reference: decode and encode these as one batch."""
    images = [decode(data, max_pixels=10**6) for data in images]
    return encoder.encode_images(torch.stack([encoder.preprocess(image) for image in images]))


def test_output_equals_the_plain_reference(tmp_path):
    manifest = image_store(tmp_path / "a-00000", 12, rows_per_tar=5)
    output = tmp_path / "embeddings" / "a-00000.h5"
    embed(manifest, output, SECTION)
    result, store = Embeddings(output), ImageStore(manifest)
    encoder = frozen.load(SECTION.model, image_size=32)
    assert (result.n, result.d) == (12, 1280)
    assert result.model == {**encoder.identity, "features": "image"}
    assert result.attributes["chunk"] == "a-00000"
    assert result.attributes["manifest"] == store.fingerprint
    assert result.keys().tolist() == [b"%09d" % row for row in range(12)]
    places = result.places()
    images = [store.read(*map(int, place)) for place in zip(*places, strict=True)]
    assert images == [jpeg(row) for row in range(12)]
    # Tars of 5, 5 and 2 rows in batches of at most 4, none across two tars.
    blocks = [(0, 4), (4, 5), (5, 9), (9, 10), (10, 12)]
    expected = torch.cat([encoded(encoder, images[start:stop]) for start, stop in blocks])
    assert np.array_equal(result.read(), expected.half().float().numpy())
    with h5py.File(output) as file:
        assert {name: file[name].dtype.str for name in file} == {
            "embedding": "<f2", "key": "|S9", "tar": "<i4", "offset": "<i8", "size": "<i8",
            "digest": "<u8",
            "failed_key": "|S9", "failed_reason": "|S32",
        }  # fmt: skip
    assert list((output.parent / "state").iterdir()) == []


def test_bytes_do_not_depend_on_workers_or_threads(tmp_path):
    manifest = image_store(tmp_path / "a", 14, rows_per_tar=5)
    embed(manifest, tmp_path / "one.h5", SECTION, workers=1)
    embed(manifest, tmp_path / "three.h5", SECTION, workers=3)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "three.h5").read_bytes()


def test_bad_images_are_counted_and_the_rest_is_right(tmp_path):
    bad = {1: b"", 3: jpeg(3)[:-200], 4: png_header(20_000, 20_000), 6: b"<html>not here</html>"}
    images = [bad.get(row, jpeg(row)) for row in range(9)]
    manifest = image_store(tmp_path / "a", images, rows_per_tar=5)
    section = Embed(image_size=32, batch_size=8, max_failed=0.5)
    embed(manifest, tmp_path / "e.h5", section)
    result = Embeddings(tmp_path / "e.h5")
    keys, reasons = result.failed()
    assert keys.tolist() == [b"%09d" % row for row in bad]
    assert reasons.tolist() == [b"empty", b"damaged", b"too_large", b"not_an_image"]
    good = [row for row in range(9) if row not in bad]
    assert result.keys().tolist() == [b"%09d" % row for row in good]
    encoder = frozen.load(section.model, image_size=32)
    expected = torch.cat(
        [encoded(encoder, [jpeg(r) for r in rows]) for rows in ([0, 2], [5, 7, 8])]
    )
    assert np.array_equal(result.read(), expected.half().float().numpy())


def test_images_without_a_direction_are_counted_and_not_embedded(tmp_path, monkeypatch):
    """A uniform image of which the encoder makes zeros would stop the clustering of the run."""
    (tmp_path / "tars").mkdir()
    images = [jpeg(row) for row in range(9)]
    for row, color in ((2, "white"), (5, "black")):
        buffer = io.BytesIO()
        Image.new("RGB", (48, 48), color).save(buffer, "PNG")
        images[row] = buffer.getvalue()
    with tarfile.open(tmp_path / "tars/a.tar", "w") as tar:
        for row, data in enumerate(images):
            add_member(tar, f"{row}.png", data)
    encode = EfficientNetLite0._image_features

    def spoiled(self, batch):
        uniform = (batch - batch.mean((2, 3), keepdim=True)).abs().amax((1, 2, 3)) < 1e-3
        dark = batch.mean((1, 2, 3)) < 0
        features = encode(self, batch)
        features[uniform & ~dark] = 0
        features[uniform & dark] = float("nan")
        return features

    section = SECTION.model_copy(update={"max_failed": 0.5, "batch_size": 3})
    # This encoder does so by itself.
    embed(tmp_path / "tars", tmp_path / "plain.h5", section)
    assert Embeddings(tmp_path / "plain.h5").failed()[1].tolist() == [b"zero_embedding"]
    monkeypatch.setattr(EfficientNetLite0, "_image_features", spoiled)
    embed(tmp_path / "tars", tmp_path / "a.h5", section)
    result = Embeddings(tmp_path / "a.h5")
    assert result.keys().tolist() == [b"0", b"1", b"3", b"4", b"6", b"7", b"8"]
    assert [column.tolist() for column in result.failed()] == [
        [b"2", b"5"], [b"zero_embedding", b"not_finite"],
    ]  # fmt: skip
    assert np.allclose(np.linalg.norm(result.read(), axis=1), 1, atol=1e-2)
    with pytest.raises(UserError, match=r"not_finite 1, zero_embedding 1.*embed\.precision"):
        embed(tmp_path / "tars", tmp_path / "b.h5", section.model_copy(update={"max_failed": 0.1}))


def test_too_many_failures_are_refused_and_work_is_kept(tmp_path):
    images = [b"" if row < 2 else jpeg(row) for row in range(10)]
    manifest = image_store(tmp_path / "a", images, rows_per_tar=5)
    message = r"a/manifest.json: 2 of 10 images failed \(empty 2\).*embed.max_failed = 0.1 "
    with pytest.raises(UserError, match=message):
        embed(manifest, tmp_path / "e.h5", Embed(image_size=32, max_failed=0.1))
    assert not (tmp_path / "e.h5").exists()
    (state,) = (tmp_path / "state").iterdir()
    assert (state / "00000.h5").exists()
    embed(manifest, tmp_path / "e.h5", Embed(image_size=32, max_failed=0.2))
    assert not state.exists()
    assert Embeddings(tmp_path / "e.h5").n == 8


def test_chunk_without_images(tmp_path):
    manifest = image_store(tmp_path / "a", [b"", b""])
    embed(manifest, tmp_path / "e.h5", Embed(image_size=32, max_failed=1))
    result = Embeddings(tmp_path / "e.h5")
    assert (result.n, result.d, len(result.failed()[0])) == (0, 1280, 2)
    assert result.read().shape == (0, 1280)


def test_mean_of_image_and_text(tmp_path, clip):
    captions = ["a cat", "", "a red house", "two dogs", ""]
    manifest = image_store(tmp_path / "a", 5, captions=captions)
    embed(manifest, tmp_path / "mean.h5", Embed(model=clip, features="image_text_mean"))
    embed(manifest, tmp_path / "image.h5", Embed(model=clip))
    encoder = frozen.load(clip)
    images = encoded(encoder, [jpeg(row) for row in range(5)])
    expected = images.clone()
    for row, caption in enumerate(captions):
        if caption:
            mean = (images[row] + encoder.encode_texts([caption])[0]) / 2
            expected[row] = mean / mean.norm()
    result = Embeddings(tmp_path / "mean.h5")
    assert np.abs(result.read() - expected.numpy()).max() < 1e-3
    assert np.abs(result.read() - images.numpy())[[0, 2, 3]].max() > 0.05
    assert np.allclose(np.linalg.norm(result.read(), axis=1), 1, atol=1e-3)
    assert result.attributes["without_caption"] == 2
    assert result.model["features"] == "image_text_mean"
    with pytest.raises(UserError, match="made by another model"):
        open_all([tmp_path / "mean.h5", tmp_path / "image.h5"])


def test_texts_without_text_tower_are_refused_before_work(tmp_path):
    manifest = image_store(tmp_path / "a", 2)
    with pytest.raises(UserError, match=r"embed.features: efficientnet_lite0 has no text tower"):
        embed(manifest, tmp_path / "e.h5", Embed(image_size=32, features="image_text_mean"))
    assert not (tmp_path / "state").exists()


def test_foreign_tars_without_manifest(tmp_path, clip):
    folder = tmp_path / "laion"
    folder.mkdir()
    for number in range(2):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for row in range(3):
                stem = f"{number:05d}{row:07d}"
                add_member(tar, f"{stem}.jpg", jpeg(10 * number + row))
                if row == 0:
                    add_member(tar, f"{stem}.txt", b"a cat")
                elif row == 1:
                    add_member(tar, f"{stem}.json", json.dumps({"caption": "a dog"}).encode())
    embed(folder, tmp_path / "e.h5", Embed(model=clip, features="image_text_mean"))
    result = Embeddings(tmp_path / "e.h5")
    assert result.attributes["chunk"] == "laion"
    tars = json.loads(result.attributes["tars"])
    assert tars == ["00000.tar", "00001.tar"]
    assert result.attributes["without_caption"] == 2
    assert result.keys().tolist() == [b"%05d%07d" % (n, row) for n in range(2) for row in range(3)]
    for row, (tar, offset, size, digest) in enumerate(zip(*result.places(), strict=True)):
        data = (folder / tars[tar]).read_bytes()[offset : offset + size]
        assert data == jpeg(10 * (row // 3) + row % 3)
        assert digest == digest_of(data)
    encoder = frozen.load(clip)
    mean = encoded(encoder, [jpeg(1)]) + encoder.encode_texts(["a dog"])
    assert np.abs(result.read(1, 2) - (mean / mean.norm()).numpy()).max() < 1e-3


def test_every_image_format_and_case_is_embedded_and_the_rest_counted(tmp_path, caplog):
    (tmp_path / "mixed").mkdir()
    endings = ["JPG", "Jpeg", "png", "gif", "bmp", "tif", "TIFF", "webp"]
    with tarfile.open(tmp_path / "mixed" / "0.tar", "w") as tar:
        for row, ending in enumerate(endings):
            add_member(tar, f"{row:09d}.{ending}", jpeg(row))
            add_member(tar, f"{row:09d}.TXT", b"a cat")
        for name in ("a.heic", "b.HEIC", "README"):
            add_member(tar, name, b"?")
    with caplog.at_level("WARNING", logger="mlcd"):
        embed(tmp_path / "mixed", tmp_path / "e.h5", SECTION)
    assert Embeddings(tmp_path / "e.h5").n == len(endings)
    assert "0.tar: 3 members ignored for their ending ('heic' 2, '' 1)" in caplog.text


def test_refused_sources(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: neither a manifest.json .* tar --format=ustar"):
        embed(tmp_path / "empty", tmp_path / "e.h5", SECTION)
    with pytest.raises(UserError, match="no such folder; run download first"):
        embed(tmp_path / "nowhere", tmp_path / "e.h5", SECTION)
    manifest = image_store(tmp_path / "cut", 3)
    tar = tmp_path / "cut" / "00000.tar"
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / tar.name).write_bytes(tar.read_bytes()[:700])
    with pytest.raises(UserError, match=r"00000.tar: not a whole tar"):
        embed(tmp_path / "plain", tmp_path / "e.h5", SECTION)
    whole = tar.read_bytes()
    place = whole.index(jpeg(1)) + 100
    tar.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(UserError, match=r"00000.tar: the image at byte \d+ is not the one that"):
        embed(manifest, tmp_path / "e.h5", SECTION)
    tar.write_bytes(whole[:-512])
    with pytest.raises(UserError, match=r"00000.tar: missing or of another size"):
        embed(manifest, tmp_path / "e.h5", SECTION)


def command(manifest: Path, output: Path) -> list[str]:
    files = ["--images", str(manifest), "--output", str(output)]
    size = ["--image-size", "32", "--batch-size", "4", "--threads", "1", "--workers", "1"]
    return [sys.executable, "-m", "mlcd", "embed", *files, *size]


def test_killed_run_resumes_to_the_same_bytes(tmp_path):
    """A real SIGKILL of the program after its first parts, then the same command again."""
    manifest = image_store(tmp_path / "a", 120, rows_per_tar=5)
    embed(manifest, tmp_path / "whole" / "e.h5", SECTION)
    output = tmp_path / "cut" / "e.h5"
    environment = {**os.environ, "PYTHONPATH": ":".join(path for path in sys.path if path)}
    program = subprocess.Popen(
        command(manifest, output), env=environment, stderr=subprocess.DEVNULL
    )
    while not (done := list((tmp_path / "cut").glob("state/*/0*.h5"))):
        assert program.poll() is None
        time.sleep(0.005)
    program.send_signal(signal.SIGKILL)
    assert program.wait() == -signal.SIGKILL
    assert not output.exists()
    done = set((tmp_path / "cut").glob("state/*/0*.h5"))
    assert 0 < len(done) < 24
    written = []
    original = chunk._write_part

    def spy(path, *arguments, **options):
        written.append(path)
        return original(path, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk, "_write_part", spy)
        embed(manifest, output, SECTION)
    assert len(written) == 24 - len(done)
    assert not set(written) & done
    assert output.read_bytes() == (tmp_path / "whole" / "e.h5").read_bytes()


def test_changed_section_never_meets_an_old_state(tmp_path):
    manifest = image_store(tmp_path / "a", [b"", *(jpeg(row) for row in range(9))])
    for size in (32, 48):
        with contextlib.suppress(UserError):
            embed(manifest, tmp_path / "e.h5", Embed(image_size=size, max_failed=0))
    assert len(list((tmp_path / "state").iterdir())) == 2


def test_crash_is_counted_and_the_stage_resumes(tmp_path, monkeypatch):
    manifest = image_store(tmp_path / "a", 12, rows_per_tar=5)
    monkeypatch.setattr(chunk, "DecodeImage", lambda *a: Dying(DecodeImage(*a), jpeg(6)))
    embed(manifest, tmp_path / "e.h5", Embed(image_size=32, batch_size=4, max_failed=0.1))
    result = Embeddings(tmp_path / "e.h5")
    assert [part.tolist() for part in result.failed()] == [[b"000000006"], [b"crashed"]]
    assert result.n == 11


def test_worker_that_dies_once_changes_nothing(tmp_path, monkeypatch):
    manifest = image_store(tmp_path / "a", 12, rows_per_tar=5)
    embed(manifest, tmp_path / "calm.h5", SECTION)
    flag = str(tmp_path / "died")
    monkeypatch.setattr(chunk, "DecodeImage", lambda *a: Dying(DecodeImage(*a), jpeg(6), flag))
    embed(manifest, tmp_path / "stormy.h5", SECTION)
    assert Path(flag).exists()
    assert (tmp_path / "calm.h5").read_bytes() == (tmp_path / "stormy.h5").read_bytes()


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom mlcd.cli import main\n"
        "try:\n    main(['embed', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'h5py', 'pandas'} & set(sys.modules)"
    )
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
    assert b"--images DIR" in result.stdout
    assert b"--max-failed" in result.stdout

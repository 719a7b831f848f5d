"""What it costs to bring images to an encoder, in CPU seconds, beside what others take.

    python benchmarks/input.py crops      decode and crop, against torchvision
    python benchmarks/input.py training   a training's batches from tars, against webdataset
    python benchmarks/input.py embed      embeddings of tars, against clip-retrieval's way
    python benchmarks/input.py overlap    decoding beside an encoder that sleeps

Three kinds of images, stored as JPEGs with a shorter side of 384 pixels: parts of the two
photographs of scikit-learn, clip art of the demo scaled up, and noise of all scales. Contenders
take turns. Figures are the median, minimum and maximum of the rounds.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import resource
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import mlcd.utils.compat  # noqa: E402, F401  (before torchvision)

# isort: split
import goals  # noqa: E402
import machine  # noqa: E402
import webdataset as wds  # noqa: E402
from PIL import Image  # noqa: E402
from sleeping import Sleeping  # noqa: E402
from torchvision import transforms  # noqa: E402

from mlcd.config import Embed  # noqa: E402
from mlcd.data.decode_pool import DecodePool  # noqa: E402
from mlcd.data.members import labeled_members  # noqa: E402
from mlcd.data.tars import digest_of  # noqa: E402
from mlcd.models import frozen  # noqa: E402
from mlcd.models.frozen.base import FrozenEncoder  # noqa: E402
from mlcd.stages.embed.chunk import embed  # noqa: E402
from mlcd.stages.train.images import Steps  # noqa: E402
from mlcd.training.crops import Augment  # noqa: E402
from mlcd.training.read_ahead import batches  # noqa: E402
from mlcd.training.shuffle import Order  # noqa: E402

WIDTH, HEIGHT, SIDE, AREA = 512, 384, 224, 0.5
BICUBIC = transforms.InterpolationMode.BICUBIC
Call = Callable[[], object]
#: Contender → CPU milliseconds per image of each round.
Times = dict[str, list[float]]


def photographs(count: int) -> Iterator[Image.Image]:
    """Yield parts of two photographs of 640 × 427 pixels."""
    from sklearn.datasets import load_sample_images

    whole = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(0)
    for row in range(count):
        left, top = int(rng.integers(0, 129)), int(rng.integers(0, 44))
        yield whole[row % 2].crop((left, top, left + WIDTH, top + HEIGHT))


def clip_art(count: int) -> Iterator[Image.Image]:
    """Yield the demo's images, which have some 128 pixels, scaled up."""
    members = itertools.islice(labeled_members(ROOT / "demo/openclipart.tar"), count)
    for _, data, _ in members:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        yield image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def noise(count: int) -> Iterator[Image.Image]:
    """Yield sums of noise of all scales, each as strong as the next."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        total = torch.zeros(1, 3, HEIGHT, WIDTH)
        for octave in range(2, 10):
            small = torch.from_numpy(rng.standard_normal((1, 3, 2**octave, 2**octave)))
            total += torch.nn.functional.interpolate(small.float(), (HEIGHT, WIDTH)) * 16
        levels = (128 + total[0]).clamp(0, 255).byte().permute(1, 2, 0)
        yield Image.fromarray(levels.numpy())


KINDS = {"photographs": photographs, "clip art": clip_art, "noise": noise}


def jpegs(kind: str, count: int, quality: int = 95) -> list[bytes]:
    """Return images of a kind as JPEGs, in the quality that download stores."""
    found = []
    for image in KINDS[kind](count):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        found.append(buffer.getvalue())
    return found


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def compare(title: str, calls: dict[str, Call], images: int, repeats: int) -> Times:
    """Print what `calls` take in turn, each with `images` images; return CPU ms per image."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = cpu_seconds()
            call()
            times[name].append(1000 * (cpu_seconds() - start) / images)
    table(title, times)
    return times


def table(title: str, times: dict[str, list[float]]) -> None:
    """Print milliseconds per image, and how many times as fast as the first each is."""
    first = statistics.median(next(iter(times.values())))
    print(f"\n{title}\n\n| contender | CPU ms per image | images per CPU s | times the first |")
    print("|---|---:|---:|---:|")
    for name, found in times.items():
        middle = statistics.median(found)
        print(
            f"| {name} | {middle:.2f} ({min(found):.2f} to {max(found):.2f}) | {1000 / middle:.0f} "
            f"| {first / middle:.2f} |"
        )


def torchvision_crops(interpolation: transforms.InterpolationMode) -> Any:
    """Return torchvision's training pipeline, up to uint8 [3, side, side]."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(SIDE, scale=(AREA, 1), interpolation=interpolation),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )


def crops(count: int, repeats: int) -> None:
    """Decode and crop; then how far the fast pixels are from the exact ones."""
    exact = Augment(SIDE, AREA, True, 0)
    fast = exact._replace(fast=True)
    target = np.empty((3, SIDE, SIDE), np.uint8)
    for kind in KINDS:
        data = jpegs(kind, count)

        def others(pipeline: Any, data: list[bytes] = data) -> None:
            for one in data:
                target[...] = pipeline(Image.open(io.BytesIO(one)).convert("RGB")).numpy()

        def ours(augment: Augment, data: list[bytes] = data) -> None:
            for row, one in enumerate(data):
                target[...] = augment.decoded(one, 0, row)

        bicubic = torchvision_crops(BICUBIC)
        bilinear = torchvision_crops(transforms.InterpolationMode.BILINEAR)
        calls: dict[str, Call] = {
            "torchvision, bicubic": lambda run=others, p=bicubic: run(p),  # type: ignore[misc]
            "torchvision, bilinear": lambda run=others, p=bilinear: run(p),  # type: ignore[misc]
            "mlcd, exact": lambda run=ours: run(exact),  # type: ignore[misc]
            "mlcd, fast": lambda run=ours: run(fast),  # type: ignore[misc]
        }
        size = sum(map(len, data)) / count / 1000
        title = f"{kind}: {count} JPEGs of {WIDTH} × {HEIGHT}, {size:.0f} kB, crop of {SIDE}"
        times = compare(title, calls, count, repeats)
        against = {"torchvision, bicubic": times["torchvision, bicubic"]}
        row = f"decode and crop, {kind}, per image"
        goals.state(row, times["mlcd, fast"], against, 1 / 1.7, unit="CPU ms")
        pairs = [
            (fast.decoded(one, 0, row).astype(int), exact.decoded(one, 0, row))
            for row, one in enumerate(data)
        ]
        means = [float(np.abs(a - b).mean()) for a, b in pairs]
        print(
            f"\nfast against exact: {statistics.mean(means):.3f} levels on average, "
            f"{max(means):.3f} in the worst image"
        )


def write_tar(path: Path, data: list[bytes]) -> list[tuple[int, int]]:
    """Write a webdataset tar; return offset and size of each image."""
    places = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row, one in enumerate(data):
            info = tarfile.TarInfo(f"{row:09d}.jpg")
            info.size = len(one)
            tar.addfile(info, io.BytesIO(one))
            places.append((tar.offset - -(-len(one) // 512) * 512, len(one)))
    return places


class Placed:
    """What training knows of the images of one tar (:class:`mlcd.stages.train.inputs.Index`)."""

    def __init__(self, path: Path, data: list[bytes]) -> None:
        self.tars = [path]
        fields = [("tar", "i4"), ("size", "i4"), ("offset", "i8"), ("digest", "u8")]
        self.place = np.array(
            [
                (0, size, offset, digest_of(one))
                for (offset, size), one in zip(write_tar(path, data), data, strict=True)
            ],
            fields,
        )
        self.label = np.zeros((len(data), 8), np.int32)
        self.counts = np.array([len(data)], np.int64)


def webdataset_reader(path: Path, transform: Any, batch: int) -> Any:
    """Return webdataset's loader with one worker, as its documentation builds it."""
    dataset = (
        wds.WebDataset(str(path), shardshuffle=False)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg")
        .map_tuple(transform)
        .batched(batch)
    )
    return wds.WebLoader(dataset, batch_size=None, num_workers=1)


def training(count: int, repeats: int) -> None:
    """Batches of 64 crops of 224 pixels by one worker; processor time of it and of the reader."""
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "00000.tar")
            index: Any = Placed(path, jpegs(kind, count))

            def ours(fast: bool, index: Any = index) -> None:
                order = Order(index.counts, batch=64, block=64, window=1000, seed=0)
                augment = Augment(SIDE, AREA, True, 0, fast)
                steps = Steps(index, order, augment, rank=0, world_size=1, micro_batches=1)
                for _ in batches(steps, 0, count // 64, workers=1, pin=False):
                    pass

            def others(path: Path = path) -> None:
                for _ in webdataset_reader(path, torchvision_crops(BICUBIC), 64):
                    pass

            calls: dict[str, Call] = {
                "webdataset and torchvision, bicubic": others,
                "mlcd, exact": lambda run=ours: run(False),  # type: ignore[misc]
                "mlcd, fast": lambda run=ours: run(True),  # type: ignore[misc]
            }
            times = compare(f"{kind}: {count} images, one worker", calls, count, repeats)
            rates = [1000 / spent for spent in times["mlcd, fast"]]
            goals.state_figure(f"training input, {kind}", rates, 300, unit="images per CPU s")


def tiny_clip(folder: Path) -> str:
    """Make open_clip know a CLIP of one narrow layer: next to nothing but the way to it counts."""
    import open_clip

    about = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 32, "patch_size": 32,
                       "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2,
                     "layers": 1},
    }  # fmt: skip
    (folder / "narrow-clip.json").write_text(json.dumps(about))
    open_clip.add_model_config(folder / "narrow-clip.json")
    return "narrow-clip"


def embeddings(count: int, repeats: int) -> None:
    """Embeddings of one tar, written to a file: what `count` images more than a tenth cost."""
    few = count // 10
    with tempfile.TemporaryDirectory() as folder:
        name = tiny_clip(Path(folder))
        encoder = frozen.load(name, image_size=SIDE)
        section = Embed(model=name, image_size=SIDE)
        for kind in KINDS:
            data = jpegs(kind, few + count)
            for part, some in (("few", data[:few]), ("all", data)):
                Path(folder, kind, part).mkdir(parents=True)
                write_tar(Path(folder, kind, part, "00000.tar"), some)
            times: dict[str, list[float]] = {"webdataset, torchvision, .npy": [], "mlcd embed": []}
            for _ in range(repeats):
                spent: dict[str, list[float]] = {label: [] for label in times}
                for part in ("few", "all"):
                    tars = Path(folder, kind, part)
                    (tars / "e.h5").unlink(missing_ok=True)
                    start = cpu_seconds()
                    by_others(encoder, tars)
                    between = cpu_seconds()
                    embed(tars, tars / "e.h5", section, workers=1)
                    spent["webdataset, torchvision, .npy"].append(between - start)
                    spent["mlcd embed"].append(cpu_seconds() - between)
                for label, (least, most) in spent.items():
                    times[label].append(1000 * (most - least) / count)
            table(f"{kind}: {count} images through a tiny CLIP, beyond start-up", times)
            ours, (peer, theirs) = times.pop("mlcd embed"), *times.items()
            row = f"embed, tiny model, {kind}, per image"
            goals.state(row, ours, {peer: theirs}, 1 / 1.5, unit="CPU ms")


def by_others(encoder: FrozenEncoder, tars: Path) -> None:
    """Embed as clip-retrieval does: webdataset's reader, torchvision's transform, one .npy."""
    transform = transforms.Compose(
        [
            transforms.Resize(SIDE, interpolation=BICUBIC),
            transforms.CenterCrop(SIDE),
            transforms.ToTensor(),
            transforms.Normalize(encoder.pixels.mean, encoder.pixels.std),
        ]
    )
    found = []
    with torch.inference_mode():
        for (batch,) in webdataset_reader(tars / "00000.tar", transform, 64):
            features = encoder._image_features(batch)
            found.append(torch.nn.functional.normalize(features, dim=1).half().numpy())
    np.save(tars / "e.npy", np.concatenate(found))


def overlap(count: int, repeats: int) -> None:
    """Seconds per batch of two workers beside an encoder; all of them sleep, so that the order of
    their work counts and the machine's other load does little."""
    size, workers, each = 16, 2, 0.05
    planned = each * size / workers
    print("\n| encoder | decoding alone s | encoder s | over the longer |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "images")
        path.write_bytes(bytes(count))
        places = [(str(path), row, 1, None) for row in range(count)]
        parts = [places[start : start + size] for start in range(0, count, size)]

        def seconds(sleep: float) -> float:
            ring = (size, SIDE, SIDE)
            with DecodePool(Sleeping(each, SIDE), workers, ring=ring) as pool:
                stream = pool.batches(parts)
                next(stream)
                start = time.monotonic()
                for _ in stream:
                    time.sleep(sleep)
                return (time.monotonic() - start) / (len(parts) - 1)

        for name, share in (("faster", 0.5), ("as fast", 1.0), ("slower", 1.5)):
            alone, ratios = [], []
            for _ in range(repeats):
                alone.append(seconds(0))
                ratios.append(seconds(share * planned) / max(alone[-1], share * planned))
            print(
                f"| {name} | {statistics.median(alone):.3f} | {share * planned:.3f} | "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
            )


PARTS = {"crops": crops, "training": training, "embed": embeddings, "overlap": overlap}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kind", choices=KINDS, help="of images [all three]")
    arguments = parser.parse_args()
    # A spawned worker imports the file of its parent, if there is one: torch and all of the above.
    globals().pop("__file__")
    for name in set(KINDS) - {arguments.kind or name for name in KINDS}:
        del KINDS[name]
    torch.set_num_threads(1)
    print(machine.description())
    PARTS[arguments.part](arguments.images, arguments.repeats)


if __name__ == "__main__":
    main()

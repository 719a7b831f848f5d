"""Kinds of images as JPEGs, and CPU seconds per image of contenders that take turns.

Three kinds, stored as JPEGs with a shorter side of 384 pixels: parts of the two photographs of
scikit-learn, clip art of the demo scaled up, and noise of all scales. Nothing of mlcd is imported
here before it is used, so that a peer in an environment of its own can use this module.
"""

from __future__ import annotations

import io
import itertools
import resource
import statistics
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT, SIDE, AREA = 512, 384, 224, 0.5
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
    sys.path.insert(0, str(ROOT / "src"))
    from mlcd.data.members import labeled_members

    members = itertools.islice(labeled_members(ROOT / "demo/openclipart.tar"), count)
    for _, data, _ in members:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        yield image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def noise(count: int) -> Iterator[Image.Image]:
    """Yield sums of noise of all scales, each as strong as the next."""
    import torch

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
    """Print what `calls` take in turn, each with `images` images; return CPU ms per image.

    A call that is the work of another process returns its CPU seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = cpu_seconds()
            told = call()
            spent = told if isinstance(told, float) else cpu_seconds() - start
            times[name].append(1000 * spent / images)
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


def torchvision_crops(interpolation: Any) -> Any:
    """Return torchvision's training pipeline, up to uint8 [3, side, side]."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(SIDE, scale=(AREA, 1), interpolation=interpolation),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )

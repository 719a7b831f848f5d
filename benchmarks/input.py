"""What it costs to bring images to an encoder, in CPU seconds, beside what others take.

    python benchmarks/input.py crops      decode and crop, against torchvision
    python benchmarks/input.py training   a training's batches, against webdataset, litdata and
                                          MosaicML Streaming
    python benchmarks/input.py overlap    decoding beside an encoder that sleeps

Images are those of benchmarks/jpegs.py. Contenders take turns. Figures are the median, minimum and
maximum of the rounds.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import mlcd.utils.compat  # noqa: E402, F401  (before torchvision)

# isort: split
import goals  # noqa: E402
import jpegs  # noqa: E402
import machine  # noqa: E402
from jpegs import AREA, HEIGHT, SIDE, WIDTH, Call, compare  # noqa: E402
from PIL import Image  # noqa: E402
from readers import BICUBIC, readers  # noqa: E402
from sleeping import Sleeping  # noqa: E402
from torchvision import transforms  # noqa: E402

from mlcd.data.decode_pool import DecodePool  # noqa: E402
from mlcd.data.tars import digest_of  # noqa: E402
from mlcd.stages.train.images import Steps  # noqa: E402
from mlcd.training.crops import Augment  # noqa: E402
from mlcd.training.read_ahead import batches  # noqa: E402
from mlcd.training.shuffle import Order  # noqa: E402


def crops(count: int, repeats: int) -> None:
    """Decode and crop; then how far the fast pixels are from the exact ones."""
    exact = Augment(SIDE, AREA, True, 0)
    fast = exact._replace(fast=True)
    target = np.empty((3, SIDE, SIDE), np.uint8)
    for kind in jpegs.KINDS:
        data = jpegs.jpegs(kind, count)

        def others(pipeline: Any, data: list[bytes] = data) -> None:
            for one in data:
                target[...] = pipeline(Image.open(io.BytesIO(one)).convert("RGB")).numpy()

        def ours(augment: Augment, data: list[bytes] = data) -> None:
            for row, one in enumerate(data):
                target[...] = augment.decoded(one, 0, row)

        bicubic = jpegs.torchvision_crops(BICUBIC)
        bilinear = jpegs.torchvision_crops(transforms.InterpolationMode.BILINEAR)
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


class Placed:
    """What training knows of the images of one tar (:class:`mlcd.stages.train.inputs.Index`)."""

    def __init__(self, path: Path, data: list[bytes]) -> None:
        self.tars = [path]
        fields = [("tar", "i4"), ("size", "i4"), ("offset", "i8"), ("digest", "u8")]
        self.place = np.array(
            [
                (0, size, offset, digest_of(one))
                for (offset, size), one in zip(jpegs.write_tar(path, data), data, strict=True)
            ],
            fields,
        )
        self.label = np.zeros((len(data), 8), np.int32)
        self.counts = np.array([len(data)], np.int64)


def training(count: int, repeats: int) -> None:
    """Batches of 64 crops of 224 pixels by one worker; processor time of it and of the reader."""
    for kind in jpegs.KINDS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "00000.tar")
            index: Any = Placed(path, jpegs.jpegs(kind, count))

            def ours(fast: bool, index: Any = index) -> None:
                order = Order(index.counts, batch=64, block=64, window=1000, seed=0)
                augment = Augment(SIDE, AREA, True, 0, fast)
                steps = Steps(index, order, augment, rank=0, world_size=1, micro_batches=1)
                for _ in batches(steps, 0, count // 64, workers=1, pin=False):
                    pass

            others = readers(kind, count)
            calls: dict[str, Call] = {
                **others,
                "mlcd, exact": lambda run=ours: run(False),  # type: ignore[misc]
                "mlcd, fast": lambda run=ours: run(True),  # type: ignore[misc]
            }
            times = compare(f"{kind}: {count} images, one worker", calls, count, repeats)
            for reader in others.values():
                reader.close()
            rates = {name: [1000 / spent for spent in found] for name, found in times.items()}
            row, unit = f"training input, {kind}", "images per CPU s"
            goals.state_figure(row, rates["mlcd, fast"], 300, unit=unit)
            against = {name: rates[name] for name in others}
            goals.state(
                f"{row}, beside readers", rates["mlcd, fast"], against, 1.0, unit=unit,
                more_is_better=True,
            )  # fmt: skip


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


PARTS = {"crops": crops, "training": training, "overlap": overlap}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kind", choices=jpegs.KINDS, help="of images [all three]")
    arguments = parser.parse_args()
    # A spawned worker imports the file of its parent, if there is one: torch and all of the above.
    globals().pop("__file__")
    for name in set(jpegs.KINDS) - {arguments.kind or name for name in jpegs.KINDS}:
        del jpegs.KINDS[name]
    torch.set_num_threads(1)
    print(machine.description())
    PARTS[arguments.part](arguments.images, arguments.repeats)


if __name__ == "__main__":
    main()

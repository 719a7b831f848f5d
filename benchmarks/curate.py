"""What stage curate finds of planted duplicates at each threshold, and what it costs.

    make demo
    python benchmarks/curate.py --results results   half a minute on two cores
    python benchmarks/curate.py --results results --rows 200000 --k 20000

Recall and precision are of the demo's images: of some of them copies are planted that were stored
again with loss, made smaller, or cut, and seen by the demo's frozen encoder. A copy is
found where it falls into the group of its original. Precision is the share of images left out whose
stand-in has the same original: a lower bound, since the images themselves have near-duplicates
(series of playing cards, clocks and faces).
Cost is CPU time of all threads.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from mlcd.config import Curate  # noqa: E402
from mlcd.data import hdf5  # noqa: E402
from mlcd.data.embeddings import Embeddings, open_all  # noqa: E402
from mlcd.data.image_store import ImageStore  # noqa: E402
from mlcd.models import frozen  # noqa: E402
from mlcd.neighbors.exact import ExactSearch  # noqa: E402
from mlcd.neighbors.rows import SLAB, Rows  # noqa: E402
from mlcd.neighbors.two_level import group_count, group_directions  # noqa: E402
from mlcd.stages.curate import duplicates  # noqa: E402
from mlcd.stages.curate.groups import keepers, stars  # noqa: E402
from mlcd.utils.logging import progress  # noqa: E402

THRESHOLDS = (0.85, 0.88, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98)
BATCH = 128
LIMIT = 8 << 30


def stored_again(image: Image.Image, quality: int) -> Image.Image:
    """Return the image as a JPEG of this quality has it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cut(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """Return a part of the image with this share of each side."""
    sides = [max(1, round(side * share)) for side in image.size]
    left, top = (
        int(rng.integers(0, whole - side + 1))
        for whole, side in zip(image.size, sides, strict=True)
    )
    return image.crop((left, top, left + sides[0], top + sides[1]))


def smaller(image: Image.Image, share: float) -> Image.Image:
    """Return the image with this share of each side."""
    sides = [max(1, round(side * share)) for side in image.size]
    return image.resize((sides[0], sides[1]), Image.Resampling.LANCZOS)


KINDS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "JPEG 70": lambda image, rng: stored_again(image, 70),
    "JPEG 30": lambda image, rng: stored_again(image, 30),
    "sides 75 %": lambda image, rng: stored_again(smaller(image, 0.75), 85),
    "sides 50 %": lambda image, rng: stored_again(smaller(image, 0.5), 85),
    "crop 95 %": lambda image, rng: cut(image, 0.95, rng),
    "crop 90 %": lambda image, rng: cut(image, 0.9, rng),
    "crop 80 %": lambda image, rng: cut(image, 0.8, rng),
}


def planted(results: Path, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return embeddings float16 [n, d], each one's original and kind int64 [n], pixels int64 [n].

    Kind −1 is an original: they are those of the run, whose encoder also sees the copies.
    """
    rng = np.random.default_rng(0)
    files = open_all(sorted(map(str, (results / "embeddings").glob("*.h5"))))
    vectors = [file.read_stored() for file in files]
    stores = [ImageStore(results / "images" / file.attributes["chunk"]) for file in files]
    places = [(index, row) for index, file in enumerate(files) for row in range(file.n)]
    table = [store.arrived(["width", "height"]).set_index("key") for store in stores]
    pixels = [
        int(table[index].loc[key.decode()][["width", "height"]].prod())
        for index, file in enumerate(files)
        for key in file.keys().tolist()
    ]
    chosen = np.sort(rng.choice(len(places), min(count, len(places)), replace=False)).tolist()
    where = [file.places() for file in files]
    images = []
    for index, row in (places[place] for place in chosen):
        data = stores[index].read(*(int(column[row]) for column in where[index]))
        images.append(Image.open(io.BytesIO(data)).convert("RGB"))
    about = files[0].model
    encoder = frozen.load(about["name"], image_size=json.loads(about["preprocessing"])["size"][0])
    originals, kinds = list(range(len(places))), [-1] * len(places)
    each = [(kind, change) for kind, change in enumerate(KINDS.values())]
    copies = [
        (change(image, rng), place, kind)
        for kind, change in each for image, place in zip(images, chosen, strict=True)
    ]  # fmt: skip
    starts = range(0, len(copies), BATCH)
    for start in progress(starts, total=len(starts), label="embed", unit="batch"):
        part = copies[start : start + BATCH]
        batch = torch.stack([encoder.preprocess(image) for image, _, _ in part])
        vectors.append(np.asarray(encoder.encode_images(batch), np.float16))
    originals += [place for _, place, _ in copies]
    kinds += [kind for _, _, kind in copies]
    pixels += [image.width * image.height for image, _, _ in copies]
    return np.concatenate(vectors), np.array(originals), np.array(kinds), np.array(pixels)


def stored(rows: np.ndarray, folder: Path) -> Rows:
    """Write embeddings [n, d], and return them as the stage reads them."""
    path = folder / "rows.h5"
    hdf5.write(path, "embeddings", {"embedding": rows}, {"model": "{}"})
    return Rows([Embeddings(path)], SLAB)


def nearest(rows: Rows, centers: np.ndarray, probes: int) -> np.ndarray:
    """Return the nearest of `centers` of each row, int32 [n, probes]."""
    search = ExactSearch(centers, rows=rows.n)
    found = [search.nearest(block, min(probes, len(centers))) for _, block in rows.blocks()]
    return np.concatenate(found).astype(np.int32)


def within(rows: Rows, clusters: np.ndarray, count: int, threshold: float) -> tuple:
    """Return the groups that the stage finds, as stars."""
    with tempfile.TemporaryDirectory() as folder:
        return duplicates.find(rows, clusters, count, threshold, LIMIT, Path(folder))


def recall(results: Path, count: int) -> None:
    """Print recall and precision at each threshold."""
    vectors, originals, kinds, pixels = planted(results, count)
    section = Curate()
    with tempfile.TemporaryDirectory() as folder:
        rows = stored(vectors, Path(folder))
        everything = rows.take(np.arange(rows.n))
        centers = group_directions(everything, group_count(rows.n))
        clusters = nearest(rows, centers, section.probes)
        cosines = np.tril(everything @ everything.T, -1)
        print(
            f"{int((kinds < 0).sum())} images and {int((kinds >= 0).sum())} planted copies; "
            f"{len(centers)} coarse clusters, {section.probes} probes"
        )
        words = ["similarity", *KINDS, "left out", "of these other originals", "precision",
                 "pairs found"]  # fmt: skip
        print("| " + " | ".join(words) + " |")
        print("|" + "---|" * len(words))
        for threshold in THRESHOLDS:
            center, other = within(rows, clusters, len(centers), threshold)
            group = np.arange(rows.n)
            group[other] = center
            found = group == group[originals]
            shares = [found[kinds == kind].mean() for kind in range(len(KINDS))]
            out, best = keepers(center, other, pixels)
            wrong = originals[out] != originals[best]
            left, right = np.nonzero(cosines >= threshold)
            whole = stars(left, right)
            share = (group[left] == group[right]).mean() if len(left) else 1.0
            told = [f"{threshold:.2f}", *(f"{value:.1%}" for value in shares), str(len(out)),
                    str(int(wrong.sum())), f"{1 - wrong.mean():.1%}", f"{share:.2%}"]  # fmt: skip
            print("| " + " | ".join(told) + " |", flush=True)
            assert len(whole[0]) >= len(center), "no group that all pairs do not give"


def cpu(work: Callable[[], object]) -> float:
    """Return the CPU seconds of all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def cost(n: int, d: int, k: int) -> None:
    """Print what the stage takes beside a pass of k-means with K = `k`."""
    rng = np.random.default_rng(0)
    places = rng.integers(0, n // 20, n)
    base = rng.standard_normal((n // 20, d), np.float32)
    vectors = base[places] + 0.7 * rng.standard_normal((n, d), np.float32)
    # One in ten is a near-duplicate of another.
    copies = rng.choice(n, n // 10, replace=False)
    vectors[copies] = vectors[rng.integers(0, n, len(copies))] * 1.01
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    probes, count = Curate().probes, group_count(n)
    with tempfile.TemporaryDirectory() as folder:
        rows = stored(vectors.astype(np.float16), Path(folder))
        sample = rows.take(np.sort(rng.choice(n, max(k, count), replace=False)))
        centers, coarse = sample[:k], sample[:count]
        one_pass = cpu(lambda: nearest(rows, centers, 1))
        assigned = nearest(rows, coarse, probes)
        search = cpu(lambda: nearest(rows, coarse, probes))
        small = cpu(lambda: nearest(rows, coarse, 1))
        compare = cpu(lambda: within(rows, assigned, count, 0.95))
    print(
        f"{n} rows of {d}: one pass of k-means with K = {k} takes {one_pass:.1f} CPU s; curate "
        f"finds {probes} of {count} clusters in {search:.1f} and compares in {compare:.1f}: "
        f"{(search + compare) / one_pass:.2f} passes. A pass of its small k-means takes "
        f"{small:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="a finished demo")
    parser.add_argument("--images", type=int, default=150, help="originals of planted copies")
    parser.add_argument("--rows", type=int, default=40_000, help="rows of the cost")
    parser.add_argument("--dim", type=int, default=256, help="their dimensions")
    parser.add_argument("--k", type=int, default=4_000, help="clusters of the pass")
    arguments = parser.parse_args()
    recall(arguments.results, arguments.images)
    cost(arguments.rows, arguments.dim, arguments.k)


if __name__ == "__main__":
    main()

"""Continue released weights or begin at random? The same training from both, with several seeds.

    python benchmarks/initial.py --results results/reduced --output results/initial

takes the labels, embeddings, images and centroids of a run, trains tf_efficientnet_lite0 at
--image-size pixels for --epochs, and scores it by k-NN (K = 10) on the demo's labeled images, of
the embedding and of the features before the projection. Variants:

    random       weights drawn from the seed
    continued    train.initial: the packaged EfficientNet-Lite0, as the demo embeds with it
    gentle       the same at a fifth of the rate, with train.layer_decay 0.8
    untouched    these weights and a projection drawn from the seed, not trained

Prints the scores' least, median and greatest over the seeds. What is in the output folder already
is not trained again.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from mlcd.config import Config, Train
from mlcd.data.decode import decode
from mlcd.data.labeled.samples import samples
from mlcd.data.preprocess import Preprocess
from mlcd.models import initial, trainable, unprojected
from mlcd.models.initial import sources
from mlcd.stages.evaluate import knn
from mlcd.utils.files import read_json, write_json

MODEL, WEIGHTS = "tf_efficientnet_lite0", "efficientnet_lite0"
#: Variant → options. The rates are usual ones for the two beginnings, and were not searched for.
VARIANTS: dict[str, list[str]] = {
    "random": ["--lr", "2e-3"],
    "continued": ["--initial", WEIGHTS, "--lr", "5e-4"],
    "gentle": ["--initial", WEIGHTS, "--lr", "1e-4", "--layer-decay", "0.8"],
    "untouched": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| first weights | k-NN, embedding | k-NN, before the projection |")
    print("|---|---:|---:|")
    for variant in arguments.variants:
        found = [one(arguments, variant, seed) for seed in arguments.seeds]
        words = [spread([record[key] for record in found]) for key in ("embedding", "trunk")]
        print(f"| {variant} | {words[0]} | {words[1]} |", flush=True)


def spread(values: list[float]) -> str:
    return f"{min(values):.3f} / {statistics.median(values):.3f} / {max(values):.3f}"


def one(arguments: argparse.Namespace, variant: str, seed: int) -> dict[str, float]:
    """Train and score once; return both scores."""
    folder, results = arguments.output / f"{variant}-{seed}", arguments.results
    record = folder / "record.json"
    asked = [*VARIANTS[variant], str(arguments.image_size), str(arguments.epochs), str(results)]
    if record.exists() and read_json(record)["asked"] == asked:
        return read_json(record)["found"]
    if variant == "untouched":
        encoder = untouched(arguments.image_size, seed)
    else:
        run(
            "train", "--seed", seed, "--model", MODEL, *VARIANTS[variant],
            "--image-size", arguments.image_size, "--epochs", arguments.epochs,
            "--labels", *sorted((results / "labels").glob("*.h5")),
            "--embeddings", *sorted((results / "embeddings").glob("*.h5")),
            "--images", *sorted((results / "images").glob("*/manifest.json")),
            "--centroids", results / "clusters" / "centroids.h5",
            "--output", folder / "train", "--ranks-per-node", 1, "--threads", 1,
            "--workers", 0, "--warmup-steps", 10,
        )  # fmt: skip
        encoder = trainable.load(folder / "train")
    found = scores(arguments, encoder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, {"asked": asked, "found": found})
    return found


def untouched(side: int, seed: int) -> trainable.Encoder:
    section = Train(model=MODEL, image_size=side, initial=WEIGHTS)
    first = initial.read(sources.find(MODEL, WEIGHTS), section)
    encoder = trainable.build(MODEL, section.embedding_dim, side, seed=seed)
    encoder.load_state_dict(first.state, strict=False)
    initial.normalize(encoder, first.about)
    return encoder.eval()


@torch.inference_mode()
def scores(arguments: argparse.Namespace, encoder: trainable.Encoder) -> dict[str, float]:
    """Return the accuracy of the vote of 10 neighbors, of both kinds of features."""
    pixels, labels, is_train = labeled(arguments.output / f"{arguments.image_size}.npz",
                                       arguments.image_size)  # fmt: skip
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) * 255 for each in (encoder.mean, encoder.std))
    batches = torch.from_numpy(pixels).permute(0, 3, 1, 2).split(64)
    parts = [unprojected.of_encoder(encoder, (batch.float() - mean) / std) for batch in batches]
    found = {}
    for name, column in zip(("embedding", "trunk"), zip(*parts, strict=True), strict=True):
        rows, known = torch.cat(column), torch.from_numpy(labels)
        guess = knn.predict(rows[is_train], known[is_train], rows[~is_train], [10], 0.07)[10]
        found[name] = float((guess == known[~is_train]).float().mean())
    return found


def labeled(path: Path, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pixels uint8 [n, side, side, 3], labels int64 [n] and bool [n] of the demo's set.

    Decoded once, and kept in a file.
    """
    if not path.exists():
        (dataset,) = Config().evaluate.datasets
        resize = Preprocess((side, side), (0.0,) * 3, (1.0,) * 3)
        kept = [s for s in samples(dataset) if s.label and s.split in ("train", "test")]
        images = [resize(decode(sample.data, max_pixels=50_000_000)) for sample in kept]
        names = sorted({sample.label or "" for sample in kept})
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            pixels=np.stack(images),
            labels=np.array([names.index(sample.label or "") for sample in kept]),
            is_train=np.array([sample.split == "train" for sample in kept]),
        )
    with np.load(path, allow_pickle=False) as file:
        return file["pixels"], file["labels"], file["is_train"]


def run(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "mlcd", *map(str, words)], check=True)


if __name__ == "__main__":
    main()

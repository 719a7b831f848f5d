"""What does the frozen encoder see of a scene: its objects, or its ground?

    python benchmarks/scenes_grounds.py --grounds unpacked/usr/share/tuxpaint/templates

composes scenes (demo/compose.py) at several contrasts of their grounds, and prints of how many of
an image's ten nearest images in train the main object, or the ground, is that image's; and the
accuracy of k-NN (20 neighbors) on the main object of test scenes, which have other drawings. Labels
of clusters can teach no more than that. benchmarks/scenes_study.py has its contrast from here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scenes_study import CHOOSE_SEED, CONFIG
from study import ROOT, program

from mlcd.config import load
from mlcd.models import frozen
from mlcd.stages.evaluate import knn
from mlcd.utils.logging import setup_logging

sys.path.insert(0, str(ROOT / "demo"))
from compose import CLASSES, Draws, Look, Scene, Sources, compose, read_grounds, read_stamps

CONTRASTS = (0.5, 0.25, 0.1, 0.0)
SCENES = {"train": 1500, "test": 500}
_NEAREST, _VOTERS, _BATCH = 10, 20, 64


def features(encoder: frozen.FrozenEncoder, scenes: Sequence[Scene]) -> torch.Tensor:
    """Return unit features float32 [n, d]."""
    found = []
    for start in range(0, len(scenes), _BATCH):
        part = [Image.fromarray(scene.pixels) for scene in scenes[start : start + _BATCH]]
        found.append(encoder.encode_images(torch.stack([encoder.preprocess(i) for i in part])))
    return torch.cat(found)


def row(encoder: frozen.FrozenEncoder, scenes: dict[str, list[Scene]], k: float) -> list[float]:
    """Return shares of near images with an equal object and ground, and the k-NN's accuracy."""
    train, test = (features(encoder, scenes[split]) for split in ("train", "test"))
    main = {split: torch.tensor([scene.main.number - 1 for scene in scenes[split]])
            for split in scenes}  # fmt: skip
    grounds = np.unique([scene.ground for scene in scenes["train"]], return_inverse=True)[1]
    similar = train @ train.T
    similar.fill_diagonal_(-2)
    near = similar.topk(_NEAREST).indices
    ground = torch.from_numpy(grounds)
    guessed = knn.predict(train, main["train"], test, [_VOTERS], k)[_VOTERS]
    return [
        float((main["train"][near] == main["train"][:, None]).float().mean()),
        float((ground[near] == ground[:, None]).float().mean()),
        float((guessed == main["test"]).float().mean()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--grounds", type=Path, required=True, help="photographs")
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 4])
    arguments = parser.parse_args()
    setup_logging()
    config = load(CONFIG)
    embed = config.embed
    encoder = frozen.load(embed.model, embed.pretrained, embed.image_size)
    stamps, photographs = (
        read_stamps(ROOT / "demo/openclipart.tar"),
        read_grounds(arguments.grounds),
    )
    sources = {split: Sources(stamps[split], photographs[split]) for split in SCENES}
    print("| objects | contrast | near: equal object | equal ground | k-NN of test |")
    print("|---:|---:|---:|---:|---:|")
    for objects in arguments.objects:
        for contrast in CONTRASTS:
            look = Look(64, 22, 32, 0.75, round(256 * contrast))
            scenes = {
                split: [compose(Draws(f"scene {CHOOSE_SEED} {split} {place}"), sources[split], look,
                                objects) for place in range(count)]
                for split, count in SCENES.items()
            }  # fmt: skip
            shown = " | ".join(f"{value:.2f}" for value in
                               row(encoder, scenes, config.evaluate.knn_temperature))  # fmt: skip
            print(f"| {objects} | {contrast:g} | {shown} |", flush=True)
    print(f"(by chance {1 / len(CLASSES):.2f} for objects, "
          f"{1 / len(photographs['train']):.2f} for grounds)")  # fmt: skip


if __name__ == "__main__":
    program("scenes_grounds", main)

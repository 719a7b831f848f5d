"""A small labeled tar, its section of the config, and the stage evaluate on it."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
from PIL import Image

from helpers.builders import add_member
from mlcd.cli import main

TAGS = ["warm", "cold", "rare"]


def random_image(label: int, seed: int) -> bytes:
    """A JPEG whose stripes give its class away: across for class 0, down for class 1."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (40, 48, 3), dtype=np.uint8)
    stripes = np.arange(40)[:, None] if label == 0 else np.arange(48)[None, :]
    pixels[np.broadcast_to(stripes // 8 % 2 == 0, (40, 48))] += 180
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def pack(path, rows) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, data, fields in rows:
            add_member(tar, f"{key}.jpg", data)
            add_member(tar, f"{key}.json", json.dumps(fields).encode())


def rows(count: int = 60) -> list:
    """Two classes by turns, every third image in test, one tag per class and a rare one."""
    found = []
    for index in range(count):
        tags = [TAGS[index % 2]] + (["rare"] if index in (3, 6) else [])
        fields = {"kind": f"kind {index % 2}", "tags": tags, "title": f"title {index // 4}"}
        fields["split"] = "test" if index % 3 == 0 else "train"
        found.append((f"k{index:03d}", random_image(index % 2, index), fields))
    return found


def config(place, **keys) -> str:
    dataset = {
        "name": "few",
        "path": str(place / "few.tar"),
        "label_field": "kind",
        "tags_field": "tags",
        "group_field": "title",
        "min_tag_count": 5,
        "tasks": ["knn", "linear_probe", "retrieval"],
    }
    values = {
        "datasets": [dataset | keys.pop("dataset", {})],
        "models": ["pixels", "random", "trained"],
        "knn_k": [1, 5],
    }
    return json.dumps(values | keys)


def evaluate(*arguments: str) -> int:
    return main(["evaluate", "--threads", "1", *map(str, arguments)])


def planted(n: int, d: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows around one center a class, stretched unevenly as real features are."""
    rng = np.random.default_rng(seed)
    label = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    centers = rng.standard_normal((classes, d))
    x = (centers[label] + rng.standard_normal((n, d))) * np.exp(rng.standard_normal(d))
    return x.astype(np.float32), label

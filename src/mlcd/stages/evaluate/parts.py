"""The parts of the stage as jobs of their own, and all of them in one go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlcd.config import Evaluate
from mlcd.config.evaluate import IMAGE_TEXT, TOWER_TASKS
from mlcd.data import hdf5
from mlcd.data.labeled import samples
from mlcd.models import text_tower as towers
from mlcd.models import trainable
from mlcd.stages.evaluate import caption_retrieval, feature_models, features
from mlcd.stages.evaluate.scores import metrics_part
from mlcd.stages.evaluate.summary import summary_part
from mlcd.training import forward
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER
from mlcd.utils.ownership import claim

#: Images per forward pass on CPUs, and on GPUs at most: more are no faster.
_ON_CPU, _MOST = 64, 128


@dataclass(frozen=True)
class Resources:
    """How wide the stage runs. No result depends on it, beyond the order of float sums.

    `batch_size`: images per forward pass; None: on GPUs what fits, on CPUs :data:`_ON_CPU`.
    """

    device: torch.device
    workers: int
    batch_size: int | None

    def batch(self, model: feature_models.FeatureModel) -> int:
        """Return the images per forward pass of `model`. Raises :class:`UserError`.

        What it takes is found by shapes, beside what is free on the GPU by now.
        """
        if model.network is None or self.device.type != "cuda":
            return self.batch_size or _ON_CPU
        room = forward.free(self.device)
        taken = forward.bytes_of(model.network, model.pixels, halves=model.halves)
        if self.batch_size is None:
            size = forward.largest(taken, room, _MOST)
            LOGGER.info("%d images at once", size or 1)
            forward.require("--batch-size", size or 1, taken, room)
            return size
        forward.require("--batch-size", self.batch_size, taken, room)
        return self.batch_size


def features_part(
    section: Evaluate,
    resources: Resources,
    *,
    model: str,
    dataset: str,
    encoder: str | None,
    embed_config: str,
    output: str | Path,
) -> None:
    """Write the features of one data set through one model."""
    chosen = samples.find(section, dataset)
    loaded = feature_models.load(model, section, encoder, embed_config, resources.device)
    features.extract(
        section,
        chosen,
        model,
        loaded,
        output,
        batch_size=resources.batch(loaded),
        workers=resources.workers,
    )


def all_parts(
    section: Evaluate,
    resources: Resources,
    encoder: str | None,
    text: str | None,
    embed_config: str,
    published: list[dict[str, Any]],
    folder: Path,
) -> None:
    """Evaluate every model of the section on every data set into `folder`.

    Features that lie there and depend on the same model, images and settings are used again.
    """
    asked = [item for item in section.datasets if set(item.tasks) - set(TOWER_TASKS)]
    if not text and not asked and not any(item.tags_field for item in section.datasets):
        raise UserError(
            f"--text: needed for {', '.join(TOWER_TASKS)}, and no other task is asked for; give "
            "the folder of stage text"
        )
    if not encoder and {"random", "trained"} & set(section.models):
        raise UserError("--encoder: needed for random and trained; give it or set evaluate.models")
    _claim(section, folder)
    tower = load_tower(text, encoder, resources.device)
    metrics = []
    for name in section.models:
        model = feature_models.load(name, section, encoder, embed_config, resources.device)
        paths = []
        for dataset in section.datasets:
            path = folder / "features" / f"{name}-{dataset.name}.h5"
            paths.append(str(path))
            if path.exists() and _identity(path) == features.identity(section, dataset, model):
                LOGGER.info("%s: features are up to date", path)
                continue
            features.extract(
                section,
                dataset,
                name,
                model,
                path,
                batch_size=resources.batch(model),
                workers=resources.workers,
            )
        metrics.append(str(folder / f"{name}.json"))
        if name == "trained" and tower is not None:
            texts = _texts(section, tower, folder / "texts")
            metrics_part(section, paths, metrics[-1], resources.device, tower, texts)
        else:
            metrics_part(section, paths, metrics[-1], resources.device)
    summary_part(metrics, folder / "summary.csv", published)


def _claim(section: Evaluate, folder: Path) -> None:
    """Refuse files of others' in the place of what :func:`all_parts` writes."""
    sets = [dataset.name for dataset in section.datasets]
    claim(
        *(folder / f"summary{suffix}" for suffix in (".csv", ".md", ".svg")),
        *(folder / f"{name}.json" for name in section.models),
        *(folder / "features" / f"{name}-{one}.h5" for name in section.models for one in sets),
        *(folder / "texts" / f"{one}.h5" for one in sets),
    )


def _texts(section: Evaluate, tower: towers.TextTower, folder: Path) -> list[str]:
    """Embed the captions of the data sets that are judged by them; return the files."""
    paths = []
    for dataset in section.datasets:
        if IMAGE_TEXT in dataset.tasks:
            paths.append(str(folder / f"{dataset.name}.h5"))
            caption_retrieval.texts_part(dataset, tower, paths[-1])
    return paths


def load_tower(
    text: str | None, encoder: str | None, device: torch.device
) -> towers.TextTower | None:
    """Load results/text, checked against the encoder of the folder `encoder` if one is given."""
    if text is None:
        return None
    sha256 = trainable.read_description(encoder)["sha256"] if encoder else None
    return towers.load(text, sha256).to(device)


def _identity(path: Path) -> str | None:
    """Return the identity in a features file; None if the file is damaged, to be made again."""
    try:
        with hdf5.reading(path, features.KIND) as file:
            identity: str | None = file.attrs.get("identity")
    except UserError:
        return None
    return identity

"""The parts of the stage as jobs of their own, and all of them in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mlcd.config import Evaluate
from mlcd.config.dense import DENSE
from mlcd.config.evaluate import OWN_PARTS
from mlcd.config.finetune import FINETUNE
from mlcd.config.labeled import IMAGE_TEXT, TOWER_TASKS
from mlcd.data import hdf5
from mlcd.data.labeled import samples
from mlcd.models import text_tower as towers
from mlcd.models import trainable
from mlcd.stages.evaluate import caption_retrieval, feature_models, features
from mlcd.stages.evaluate.dense import dense_part
from mlcd.stages.evaluate.finetune import finetune_part
from mlcd.stages.evaluate.resources import Resources
from mlcd.stages.evaluate.scores import metrics_part
from mlcd.stages.evaluate.summary import summary_part
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER
from mlcd.utils.ownership import claim


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


#: Parts of one model on one data set, called alike.
OF_ONE_SET = {"features": features_part, FINETUNE: finetune_part, DENSE: dense_part}


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
        paths, more = [], _own_parts(section, resources, name, encoder, embed_config, folder)
        asked = [dataset for dataset in section.datasets if dataset.asks_features]
        if asked:
            model = feature_models.load(name, section, encoder, embed_config, resources.device)
        for dataset in asked:
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
            metrics_part(section, paths, metrics[-1], resources.device, tower, texts, more, name)
        else:
            metrics_part(section, paths, metrics[-1], resources.device, more=more, model=name)
    summary_part(metrics, folder / "summary.csv", published)


def _own_parts(
    section: Evaluate,
    resources: Resources,
    model: str,
    encoder: str | None,
    embed_config: str,
    folder: Path,
) -> list[str]:
    """Run the tasks that have parts of their own on every data set that asks; return the files."""
    found = []
    for part, dataset in section.parts_of(model):
        found.append(str(folder / part / f"{model}-{dataset}.json"))
        OF_ONE_SET[part](
            section, resources, model=model, dataset=dataset, encoder=encoder,
            embed_config=embed_config, output=found[-1],
        )  # fmt: skip
    return found


def _claim(section: Evaluate, folder: Path) -> None:
    """Refuse files of others' in the place of what :func:`all_parts` writes."""
    sets = [dataset.name for dataset in section.datasets]
    claim(
        *(folder / f"summary{suffix}" for suffix in (".csv", ".md", ".svg")),
        *(folder / f"{name}.json" for name in section.models),
        *(folder / "features" / f"{name}-{one}.h5" for name in section.models for one in sets),
        *(folder / "texts" / f"{one}.h5" for one in sets),
        *(
            folder / part / f"{name}-{one}.json"
            for part in OWN_PARTS
            for name in section.models
            for one in sets
        ),
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

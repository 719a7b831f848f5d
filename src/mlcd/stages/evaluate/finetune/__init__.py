"""Task `finetune`: the whole encoder trained on a data set's classes, then scored on test images.

Read `task.py` first: what a step is, and how the score comes about.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from mlcd.config import Embed, Evaluate, parse_section
from mlcd.config.finetune import Finetune
from mlcd.config.labeled import Dataset
from mlcd.data.labeled import layout
from mlcd.data.labeled.samples import find
from mlcd.launch.inline import alone
from mlcd.models import trainable, tunable
from mlcd.stages.evaluate import classes, measures, own_part
from mlcd.stages.evaluate.finetune import images, task
from mlcd.stages.evaluate.resources import Resources
from mlcd.training import trainer
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER
from mlcd.utils.records import read_record

#: Checkpoints are written at the end of an epoch, but not further apart than this many steps.
_STEPS = 500


def finetune_part(
    section: Evaluate,
    resources: Resources,
    *,
    model: str,
    dataset: str,
    encoder: str | None,
    embed_config: str,
    output: str | os.PathLike[str],
) -> None:
    """Fine-tune `model` on `dataset` and write its score; the same call resumes after a kill.

    `resources.workers` are processes that read images, `resources.batch_size` images at once, None
    for a whole step's. A result that is there and depends on the same code, settings, weights and
    images is left as it is.

    Raises :class:`UserError` for what the user can fix: no classes, too few images, no such model.
    """
    chosen = find(section, dataset)
    recipe = section.finetuning(model)
    at_once = resources.batch_size or recipe.batch_size
    if recipe.batch_size % at_once:
        raise UserError(
            f"--batch-size: {at_once} does not divide evaluate.finetune_batch_size, "
            f"{recipe.batch_size}; change one of them"
        )
    about, embed, source = _source(section, model, encoder, embed_config)
    where, threads, workers = resources.device, resources.threads, resources.workers
    # Batch norm and sums see what is computed at once, and on how many threads.
    width = [at_once, threads, where.type] if where.type == "cpu" else [at_once, where.type]
    data = layout.identity(chosen)
    identity = own_part.identity_of(
        section.for_finetune(dataset, model), about, source, data, width
    )
    with own_part.making(output, identity) as state:
        if state is None:
            return
        images.copy(section, chosen, state, max(1, workers))
        steps = _steps_per_epoch(recipe, state, chosen)
        arguments = task.FinetuneArguments(
            section=recipe,
            identity=identity,
            state=state.resolve(),
            output=state.resolve(),
            device=where.type,
            checkpoint_every=min(_STEPS, steps),
            keep=2,
            made_from={"images": [data]},
            model=model,
            encoder=encoder,
            embed=embed,
            metric=chosen.class_metric,
            micro_batch=at_once,
            max_pixels=section.max_pixels,
            workers=workers if workers > 1 else 0,
            about={
                "part": "finetune", "model": model, "dataset": dataset, "identity": identity,
                "threads": threads,
                **about,
            },
            result=str(Path(output).resolve()),
        )  # fmt: skip
        with alone(threads, where.index or 0):
            trainer.train_rank(arguments, task.FinetuneTask)
    LOGGER.info("wrote %s: %s", output, read_record(output, "evaluate")["scores"])


def _source(
    section: Evaluate, model: str, encoder: str | None, embed_config: str
) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Return what the result says of the first weights, the frozen encoder's keys, an identity."""
    if model not in ("random", "trained", "frozen"):
        raise UserError(f"--model: {model!r} cannot be fine-tuned; give random, trained or frozen")
    if model == "frozen":
        embed = parse_section("embed", embed_config, {})
        assert isinstance(embed, Embed)
        keys = {name: getattr(embed, name) for name in ("model", "pretrained", "image_size")}
        return {"seed": section.seed}, keys, tunable.load_frozen(**keys).identity
    if not encoder:
        raise UserError(f"--encoder: needed for the model {model}; give the folder of stage train")
    found = trainable.read_description(encoder)
    if model == "trained":
        seed = found.get("section", {}).get("seed", section.seed)
        return {"seed": seed, "encoder_sha256": found["sha256"]}, {}, found["sha256"]
    keys = {key: found[key] for key in ("model", "embedding_dim", "image_size", "mean", "std")}
    return {"seed": section.seed}, {}, keys


def _steps_per_epoch(recipe: Finetune, state: Path, dataset: Dataset) -> int:
    """Return the steps of an epoch. Raises :class:`UserError` for too few images or classes."""
    found = images.LabeledImages(state)
    sides = classes.sides_of(found, {})
    train = int(sides.train.sum())
    task.check_batch(recipe, train, dataset.name)
    truth = torch.from_numpy(sides.label[sides.test])
    measures.check(dataset.class_metric, dataset.name, found.classes, truth, "test")
    return int(train // recipe.batch_size)

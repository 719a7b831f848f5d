"""Dense tasks: what the patch tokens of a frozen model say of masks, boxes and places.

    segmentation   a linear layer on tokens, judged by mIoU        segmentation.py
    regions        the class of the object in a box                regions.py
    pointing       does the most similar patch lie in the object?  pointing.py
    token_spread   mean cosine between the tokens of an image      pointing.py

Tokens are computed once and lie on disk while the tasks look at them (`store.py`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mlcd.config import Evaluate
from mlcd.config.dense import DENSE, DENSE_TASKS, POINTING, REGIONS, SEGMENTATION, SPREAD
from mlcd.data.labeled import layout
from mlcd.data.labeled.samples import find
from mlcd.models import region_layer
from mlcd.stages.evaluate import feature_models
from mlcd.stages.evaluate.chosen import DIGITS
from mlcd.stages.evaluate.dense import pointing, regions, segmentation, store
from mlcd.stages.evaluate.dense.encode import DenseModel
from mlcd.stages.evaluate.resources import Resources
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_json, state_dir
from mlcd.utils.fingerprint import code_hash
from mlcd.utils.logging import LOGGER
from mlcd.utils.records import read_record, write_record


def dense_part(
    section: Evaluate,
    resources: Resources,
    *,
    model: str,
    dataset: str,
    encoder: str | None,
    embed_config: str,
    output: str | os.PathLike[str],
) -> None:
    """Write the dense scores of `model` on `dataset`; the same call resumes after a kill.

    A result that is there and depends on the same code, settings, weights and images is left as it
    is. Raises :class:`UserError` for what the user can fix: no masks or boxes, no such model.
    """
    chosen = find(section, dataset)
    tasks = [task for task in DENSE_TASKS if task in chosen.tasks]
    if not tasks:
        raise UserError(
            f"evaluate.datasets: {dataset} asks for no dense task; add one of "
            f"{', '.join(DENSE_TASKS)}"
        )
    if model == "pixels":
        raise UserError("--model: pixels have no patch tokens; give random, trained or frozen")
    layout.check(chosen)
    loaded = feature_models.load(model, section, encoder, embed_config, resources.device)
    data = layout.identity(chosen)
    settings = json.loads(section.for_dense(dataset, model))
    for item in settings["datasets"]:
        del item["path"]
    layer = region_layer.described(encoder) if encoder and loaded.regions else None
    named = [layer["sha256"]] if layer else []
    identity = sha256_json([code_hash("evaluate"), settings, loaded.identity, data, *named])
    if _is_there(output, identity):
        LOGGER.info("%s: up to date", output)
        return
    state = state_dir(output, identity)
    store.write(
        section,
        chosen,
        DenseModel(loaded, resources.device),
        state,
        regions=bool({REGIONS, POINTING} & set(tasks)),
        batch_size=resources.batch(loaded),
        workers=resources.workers,
    )
    record: dict[str, Any] = {
        "part": DENSE,
        "model": model,
        "dataset": dataset,
        "seed": loaded.seed,
        "identity": identity,
        "made_from": {"images": [data]},
    }
    if loaded.encoder_sha256 is not None:
        record["encoder_sha256"] = loaded.encoder_sha256
    # Fits sum in another order on another number of threads.
    with _one_thread():
        kept = store.Store(section, chosen, state)
        record |= {
            "images": kept.counts(),
            **_scores(section, kept, tasks, loaded, model, resources),
        }
    write_record(output, record)
    shutil.rmtree(state)


def _scores(
    section: Evaluate,
    kept: store.Store,
    tasks: Sequence[str],
    loaded: feature_models.FeatureModel,
    model: str,
    resources: Resources,
) -> dict[str, Any]:
    """Return scores, chance, and in `dense` what they rest on."""
    found: list[dict[str, Any]] = []
    if SEGMENTATION in tasks:
        found.append(segmentation.judge(section, kept, resources.device))
    if {REGIONS, POINTING} & set(tasks):
        objects = regions.Regions(section, kept, model)
        if REGIONS in tasks:
            found.append(regions.judge(section, kept, objects, resources.device, loaded.regions))
        if POINTING in tasks:
            found.append(pointing.judge(kept, objects))
    if SPREAD in tasks:
        found.append(pointing.spread(kept))
    result: dict[str, Any] = {"scores": {}, "chance": {}, DENSE: {"map": list(kept.shape)}}
    for one in found:
        for key in ("scores", "chance"):
            result[key] |= {name: round(value, DIGITS) for name, value in one.pop(key).items()}
        result[DENSE] |= one
    told = ", ".join(f"{name} {value:.4f}" for name, value in result["scores"].items())
    LOGGER.info("%s on %s: %s", model, kept.dataset, told)
    return result


def _is_there(output: str | os.PathLike[str], identity: str) -> bool:
    """True if `output` is the result of `identity`; a damaged one is made again."""
    try:
        there = Path(output).exists() and read_record(output, "evaluate")
    except UserError:
        return False
    return bool(there and there.get("identity") == identity)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

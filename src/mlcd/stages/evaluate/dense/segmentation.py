"""Linear segmentation: batch norm and one linear layer on frozen patch tokens, judged by mIoU.

DINOv2's linear head (arXiv 2304.07193, 7.4, its released configuration): AdamW, logits upsampled
bilinearly. Ours sees tokens that are computed once: whole images in the encoder's own square,
without its random crops and without sliding windows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from mlcd.config import Evaluate
from mlcd.data.labeled.scenes import IGNORED
from mlcd.stages.evaluate.dense.store import Store
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER, progress

#: Steps of linear warm-up at most, and deviation of the first weights (mmsegmentation's).
_WARMUP, _STD = 100, 0.01
#: Logits that are upsampled at once, and pixels that are counted at once.
_AT_ONCE = 1 << 24


def judge(section: Evaluate, store: Store, device: torch.device) -> dict[str, Any]:
    """Fit on the train images and return mIoU on the test images, chance, and what they rest on.

    Raises :class:`UserError` if no train or no test image has a mask, or all is of one class.
    """
    labeled = (store.target != IGNORED).any((1, 2))
    train = np.array([row for row in store.on("train") if labeled[row]], np.int64)
    test = np.array([row for row in store.on("test") if store.mask(row) is not None], np.int64)
    if not len(train) or not len(test):
        side = "test" if len(train) else "train"
        raise UserError(
            f"evaluate.datasets: {store.dataset} has no {side} image with a mask in which a pixel "
            "counts"
        )
    bare = len(store.on("train")) + len(store.on("test")) - len(train) - len(test)
    if bare:
        LOGGER.warning("%s: segmentation leaves out %d images without a mask", store.dataset, bare)
    classes = store.mask_classes()
    if len(np.setdiff1d(store.target[train], [IGNORED])) < 2:
        raise UserError(f"evaluate.datasets: all masks of {store.dataset} are of one class")
    head = fit(section, store, train, classes, device)
    counts = np.bincount(store.target[train].ravel(), minlength=256)[:classes]
    found = np.zeros((classes, classes), np.int64)
    always = np.zeros_like(found)
    for rows, tokens in store.batches(test, section.segmentation_batch_size):
        with torch.inference_mode():
            logits = head(tokens.to(device))
        for row, one in zip(rows.tolist(), logits, strict=True):
            truth = store.mask(row)
            assert truth is not None
            found += confusion(truth, largest(one, *truth.shape), classes)
            most = np.full(truth.shape, int(counts.argmax()), np.uint8)
            always += confusion(truth, most, classes)
    each = iou(found)
    return {
        "scores": {"segmentation_miou": float(np.nanmean(each))},
        "chance": {"segmentation_miou": float(np.nanmean(iou(always)))},
        "segmentation": {
            "classes": int(np.isfinite(each).sum()),
            "train_images": len(train),
            "test_images": len(test),
            "pixel_accuracy": float(np.trace(found) / found.sum()),
            "iou": {str(number): float(value) for number, value in enumerate(each)
                    if np.isfinite(value)},
        },
    }  # fmt: skip


def fit(
    section: Evaluate, store: Store, rows: np.ndarray, classes: int, device: torch.device
) -> nn.Module:
    """Return the layer fitted on images `rows`: tokens [B, C, h, w] to logits [B, classes, h, w].

    A step sees images that a generator of `seed` draws; none comes twice before all have come.
    """
    channels = store.shape[2]
    draw = torch.Generator().manual_seed(section.seed)
    norm, linear = nn.BatchNorm2d(channels), nn.Conv2d(channels, classes, 1)
    with torch.no_grad():
        linear.weight.copy_(_STD * torch.randn(linear.weight.shape, generator=draw))
        nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
    head = nn.Sequential(norm, linear).to(device).train()
    optimizer = torch.optim.AdamW(
        head.parameters(),
        lr=section.segmentation_lr,
        weight_decay=section.segmentation_weight_decay,
    )
    total, size = section.segmentation_steps, min(section.segmentation_batch_size, len(rows))
    order = np.zeros(0, np.int64)
    for step in progress(range(total), label="segmentation", unit="step"):
        if len(order) < size:
            order = np.concatenate([order, torch.randperm(len(rows), generator=draw).numpy()])
        chosen, order = np.sort(rows[order[:size]]), order[size:]
        rate = min(1.0, (step + 1) / min(_WARMUP, total)) * (1 - step / total)
        for group in optimizer.param_groups:
            group["lr"] = section.segmentation_lr * rate
        target = torch.from_numpy(store.target[chosen]).to(device).long()
        logits = head(store.tokens(chosen).to(device))
        wide = interpolate(logits, target.shape[1:], mode="bilinear")
        if not (target != IGNORED).any():
            continue
        loss = cross_entropy(wide, target, ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if not all(bool(weight.isfinite().all()) for weight in head.parameters()):
        raise UserError(
            f"segmentation on {store.dataset}: the fit is not finite; lower evaluate."
            "segmentation_lr"
        )
    return head.eval()


def largest(logits: Tensor, height: int, width: int) -> np.ndarray:
    """Return uint8 [height, width]: the class of the largest of logits [classes, h, w], upsampled.

    A few classes at a time, so that a photo of many pixels and classes fits into memory.
    """
    at_once = max(1, _AT_ONCE // (height * width))
    best = said = torch.zeros(0)
    for start in range(0, len(logits), at_once):
        some = logits[None, start : start + at_once]
        values, places = interpolate(some, (height, width), mode="bilinear")[0].max(0)
        places = (places + start).to(torch.uint8)
        if start:
            ahead = values > best
            values, places = torch.where(ahead, values, best), torch.where(ahead, places, said)
        best, said = values, places
    found: np.ndarray = said.cpu().numpy()
    return found


def confusion(truth: np.ndarray, said: np.ndarray, classes: int) -> np.ndarray:
    """Return int64 [classes, classes]: pixels of each class by what was said of them.

    `truth` uint8 and `said`, of one shape. Pixels of :data:`IGNORED` are left out.
    """
    counts = np.zeros(classes * classes, np.int64)
    for start in range(0, truth.size, _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        known, guess = truth.ravel()[some], said.ravel()[some]
        judged = known != IGNORED
        pairs = known[judged].astype(np.int64) * classes + guess[judged].astype(np.int64)
        counts += np.bincount(pairs, minlength=classes * classes)
    return counts.reshape(classes, classes)


def iou(found: np.ndarray) -> np.ndarray:
    """Return float [classes] of a confusion: intersection over union, NaN for what is not there.

    What is there but was never said, or said and never there, has 0.
    """
    both = np.diag(found).astype(np.float64)
    either = found.sum(1) + found.sum(0) - both
    shares: np.ndarray = np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0)
    return shares

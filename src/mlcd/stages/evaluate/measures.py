"""Measures of predictions, one a data set: CLIP's (arXiv 2103.00020, Table 9). Larger is better.

Of classes: logits float [n, c] and truth int64 [n], whose values of c and more are classes that
could not be learned (they count as wrong). Of tags: logits [n, t] and truth bool [n, t].
"""

from __future__ import annotations

import numpy as np
import torch

from mlcd.utils.errors import UserError


def accuracy(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """Share of images whose highest logit is that of their class."""
    return float((logits.argmax(1) == truth).double().mean())


def mean_per_class(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean over the classes in `truth` of the share of their images put right."""
    right = (logits.argmax(1) == truth).double()
    count = torch.bincount(truth).double()
    hits = torch.bincount(truth, weights=right)
    return float((hits[count > 0] / count[count > 0]).mean())


def mean_top1_top5(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean of the shares of images whose class has the highest, or one of the 5 highest logits.

    Kinetics-700's measure.
    """
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices == truth[:, None]
    return float((top[:, 0].double().mean() + top.any(1).double().mean()) / 2)


def roc_auc(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """Area under the ROC curve of two classes, both of them in `truth`. Hateful Memes' measure."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth.cpu().numpy(), (logits[:, 1] - logits[:, 0]).cpu().numpy()))


def mean_average_precision(logits: np.ndarray, truth: np.ndarray) -> float:
    """Mean over tags of the average precision, as scikit-learn defines it; 0 of a tag on no image.

    A positive counts the precision at its logit: the share of positives among the images whose
    logit is that or a higher one. All tags are sorted at once, since a search for C asks often.
    """
    images, tags = truth.shape
    if not tags:
        return 0.0
    order = np.argsort(-logits, axis=0, kind="stable")
    logits = np.take_along_axis(logits, order, axis=0)
    truth = np.take_along_axis(truth, order, axis=0)
    hits = np.cumsum(truth, axis=0)
    # Of equal logits, all count at the last one's place.
    place = np.arange(images)[:, None]
    last = np.where(logits[:-1] == logits[1:], images, place[:-1])
    last = np.concatenate([last, np.full((1, tags), images - 1)])
    last = np.minimum.accumulate(last[::-1], axis=0)[::-1]
    precision = np.take_along_axis(hits / (place + 1), last, axis=0)
    return float(((precision * truth).sum(0) / np.maximum(hits[-1], 1)).mean())


def eleven_point_map(logits: np.ndarray, truth: np.ndarray) -> float:
    """Mean over tags of the 11-point interpolated average precision, as in Pascal VOC 2007.

    At each recall of 0, 0.1, … 1, the best precision at that recall or a higher one.
    """
    from sklearn.metrics import precision_recall_curve

    if not truth.shape[1]:
        return 0.0
    found = []
    for tag in range(truth.shape[1]):
        precision, recall, _ = precision_recall_curve(truth[:, tag], logits[:, tag])
        # The curve's last point (recall 0, precision 1) is no threshold's; 1e-9: 0.1 is no float.
        levels = [precision[:-1][recall[:-1] >= 0.1 * step - 1e-9].max() for step in range(11)]
        found.append(np.mean(levels))
    return float(np.mean(found))


#: evaluate.datasets.metric → function, for classes and for tags.
OF_CLASSES = {
    "accuracy": accuracy,
    "mean_per_class": mean_per_class,
    "roc_auc": roc_auc,
    "mean_top1_top5": mean_top1_top5,
}
OF_TAGS = {"map": mean_average_precision, "map_11_point": eleven_point_map}


def check(metric: str, dataset: str, classes: int, truth: torch.Tensor, side: str) -> None:
    """Raise :class:`UserError` where `metric` of `classes` classes says nothing.

    That is, of one class alone; roc_auc of other than two, or of a side (`truth` int64 [n]) that
    has one of them.
    """
    where = f"evaluate.datasets: {dataset}"
    if classes < 2:
        raise UserError(f"{where} has one class; two are needed, see label_field")
    if metric != "roc_auc":
        return
    if classes != 2:
        raise UserError(f"{where} has {classes} classes; roc_auc is of two, set another metric")
    if set(truth.tolist()) != {0, 1}:
        raise UserError(
            f"{where}: its {side} images are all of one class, and roc_auc needs both; change "
            "evaluate.validation_share, group_field or the split"
        )


#: What the names of scores begin with that not all models have.
_OF_SOME = (
    "zero_shot", "image_to_text", "text_to_image", "finetune", "segmentation", "region_",
    "pointing_", "token_cosine",
)  # fmt: skip


def of_some(score: str) -> bool:
    """Return whether a score is of some models only: of the text tower, or of tasks of own parts.

    Only the trained encoder has a tower; raw pixels have no weights to fine-tune, and no patches.
    """
    return score.startswith(_OF_SOME)


def score_name(metric: str) -> str:
    """Return what the probe's score is called: its task, and the metric where it is not the usual.

    linear_probe, linear_probe_roc_auc, …; tags_map, tags_map_11_point.
    """
    if metric in OF_TAGS:
        return f"tags_{metric}"
    return "linear_probe" if metric == "accuracy" else f"linear_probe_{metric}"


def finetune_name(metric: str) -> str:
    """Return what the score of fine-tuning is called: finetune, finetune_mean_per_class, …."""
    return "finetune" if metric == "accuracy" else f"finetune_{metric}"


def zero_shot_name(metric: str) -> str:
    """Return what the tower's score is called: zero_shot, zero_shot_roc_auc, zero_shot_map, …."""
    return "zero_shot" if metric == "accuracy" else f"zero_shot_{metric}"

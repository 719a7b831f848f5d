"""Metrics and models in words: one name for one thing on every page, table and chart."""

from __future__ import annotations

#: How names of metrics begin, longest first → words for a single metric, and for the group.
_FIXED = {
    "linear_probe": "linear probe accuracy",
    "linear_probe_mean_per_class": "linear probe accuracy, mean per class",
    "linear_probe_roc_auc": "linear probe ROC-AUC",
    "linear_probe_mean_top1_top5": "linear probe accuracy, mean of top 1 and 5",
    "zero_shot": "zero-shot accuracy",
    "zero_shot_mean_per_class": "zero-shot accuracy, mean per class",
    "zero_shot_roc_auc": "zero-shot ROC-AUC",
    "zero_shot_mean_top1_top5": "zero-shot accuracy, mean of top 1 and 5",
    "zero_shot_map": "zero-shot mAP of tags",
    "zero_shot_map_11_point": "zero-shot 11-point mAP of tags",
    "finetune": "fine-tuned accuracy",
    "finetune_mean_per_class": "fine-tuned accuracy, mean per class",
    "finetune_roc_auc": "fine-tuned ROC-AUC",
    "finetune_mean_top1_top5": "fine-tuned accuracy, mean of top 1 and 5",
    "segmentation_miou": "mIoU of linear segmentation",
    "token_cosine": "mean cosine of tokens",
    "tags_map": "mAP of tags",
    "tags_map_11_point": "11-point mAP of tags",
}
#: Beginning of a name, before its k → words.
_COUNTED = {
    "knn_": "k-NN accuracy, k = {}",
    "shared_tags_": "tags shared with the {} nearest",
    "retrieval_r": "image retrieval R@{}",
    "image_to_text_r": "image to text R@{}",
    "text_to_image_r": "text to image R@{}",
}
_VIEWS = {
    "crop": "the crop by itself",
    "roi": "the image's tokens in the box",
    "layer": "the trained region layer",
    "image": "the whole image",
}
_ENDS = {
    **{f"region_knn_{view}": f"region k-NN on {words}" for view, words in _VIEWS.items()},
    **{f"region_probe_{view}": f"region probe on {words}" for view, words in _VIEWS.items()},
    "pointing_class": "pointing at an object of a class",
    "pointing_object": "pointing at the object itself",
    "image_to_text_median_rank": "image to text, median rank",
    "text_to_image_median_rank": "text to image, median rank",
}
#: Model → how sentences call it.
MODELS = {
    "pixels": "raw pixels",
    "random": "random weights",
    "trained": "trained encoder",
    "frozen": "frozen encoder",
    "chance": "chance",
}


def metric(name: str) -> str:
    """Return a metric's name in words: `knn_10` is k-NN accuracy, k = 10. Unknown ones stay."""
    if words := _FIXED.get(name) or _ENDS.get(name):
        return words
    for start, words in _COUNTED.items():
        k = name.removeprefix(start)
        if k != name and k.isdigit():
            return words.format(k)
    return name


def model(name: str) -> str:
    """Return a model's name in words. Unknown ones stay."""
    return MODELS.get(name, name)

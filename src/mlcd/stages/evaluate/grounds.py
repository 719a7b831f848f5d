"""What scores rest on, for people: images, classes, tags, objects; and scores of parts of these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlcd.stages.evaluate.chosen import DIGITS


def sentences(found: dict[str, Any]) -> list[str]:
    """Return sentences on the images, classes and tags that the figures rest on."""
    images = found["images"]
    failed = sum(images["failed"].values())
    validation = f", {count} validation" if (count := images["validation"]) else ""
    sentence = f"{images['train']} train{validation} and {images['test']} test images"
    if failed:
        reasons = ", ".join(f"{reason} {count}" for reason, count in images["failed"].items())
        sentence += f"; {failed} more could not be decoded ({reasons})"
    lines = [sentence + "."]
    if classes := found.get("classes"):
        sentence = f"{classes['in_train']} classes in train"
        if single := classes["with_one_train_image"]:
            sentence += f", {single} of them with one image"
        if unseen := classes["test_images_of_unseen_classes"]:
            sentence += f"; {unseen} test images of other classes count as wrong"
        if unlabeled := classes["unlabeled_images"]:
            sentence += f"; {unlabeled} images without a class are left out"
        lines.append(sentence + ".")
    lines += _dense(found.get("dense", {}))
    if tuned := found.get("finetune"):
        lines.append(
            f"Fine-tuned for {tuned['epochs']} epoch{'s' * (tuned['epochs'] != 1)} of "
            f"{tuned['train_images']} train images, "
            f"{tuned['steps']} steps."
        )
    if retrieval := found.get("retrieval"):
        sentence = f"{retrieval['queries']} queries in {retrieval['gallery']} images"
        if left_out := retrieval["queries_without_an_answer"]:
            sentence += f"; {left_out} more have no other image of their class there"
        lines.append(sentence + ".")
    if texts := found.get("image_text_retrieval"):
        sentence = f"{texts['captions']} captions of {texts['images']} test images"
        if shared := texts["captions_of_several_images"]:
            sentence += f", {shared} of them of several images, which no tower tells apart"
        if left_out := texts["images_without_a_caption"]:
            sentence += f"; {left_out} more images have none"
        lines.append(sentence + ".")
    if tags := found.get("tags"):
        lines.append(f"{tags['kept']} tags; {tags['too_rare']} on too few images are left out.")
    return lines


def _dense(found: dict[str, Any]) -> list[str]:
    """Return sentences on the masks and objects that dense scores rest on."""
    lines = []
    if masks := found.get("segmentation"):
        lines.append(
            f"mIoU: {masks['classes']} classes in masks of {masks['train_images']} train and "
            f"{masks['test_images']} test images."
        )
    if regions := found.get("regions"):
        groups = ", ".join(f"{n} {name}" for name, n in regions["test_by_group"].items())
        hidden = f"; {n} hardly visible ones left out" if (n := regions["hardly_visible"]) else ""
        lines.append(
            f"Regions: {regions['train']} train and {regions['test']} test objects ({groups}) of "
            f"{regions['classes']} classes{hidden}."
        )
    return lines


def regions_by_group(models: Mapping[str, dict[str, Any]]) -> list[str]:
    """Return a table of the regions' scores by size of the box and by what hides the object.

    `models`: name → what was found on one data set. Nothing where no regions were judged.
    """
    having = {
        model: found["dense"]["regions"]
        for model, found in models.items()
        if "regions" in found.get("dense", {})
    }
    if not having:
        return []
    groups = list(next(iter(having.values()))["test_by_group"])
    lines = ["| regions by size and overlap | " + " | ".join(groups) + " |"]
    lines.append("|---" + "|---:" * len(groups) + "|")
    for model, found in having.items():
        for score, values in found["by_group"].items():
            how, view = score.split("_")[1:]
            cells = [f"{values[g]:.{DIGITS}f}" if g in values else "" for g in groups]
            lines.append(f"| {model}, {how} of {view} | " + " | ".join(cells) + " |")
    return [
        *lines,
        "",
        "Regions: the class of the object in a box, seen as a crop that is encoded by itself, as "
        "the mean of the image's map over the box (roi), by the region layer that was trained on "
        "such boxes (layer, where there is one), or by the features of the whole image. "
        "small: a box of less than a 16th of the image; large: of a quarter or more. covered: less "
        "than 95 % of the object is to be seen.",
        "",
    ]

"""All models side by side: a table for programs, one for people, and an image."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlcd.config import comparison, load
from mlcd.config.registry import published_sets, registry, zero_shot_sets
from mlcd.stages.evaluate.chosen import DIGITS
from mlcd.stages.evaluate.measures import of_tower, score_name, zero_shot_name
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, write_text
from mlcd.utils.ownership import MARKDOWN_MARK, claim
from mlcd.utils.records import read_record, write_csv

COLUMNS = (
    "model", "dataset", "metric", "value", "seed", "better", "published", "difference",
    "encoder_sha256",
)  # fmt: skip
CHANCE = "chance"
#: Whose scores the paper's figures stand beside.
JUDGED = "trained"
_WORDS = {
    "linear_probe": "linear probe",
    "linear_probe_mean_per_class": "linear probe, mean per class",
    "linear_probe_roc_auc": "linear probe, ROC-AUC",
    "linear_probe_mean_top1_top5": "linear probe, mean of top 1 and 5",
    "zero_shot": "zero-shot",
    "zero_shot_mean_per_class": "zero-shot, mean per class",
    "zero_shot_roc_auc": "zero-shot, ROC-AUC",
    "zero_shot_mean_top1_top5": "zero-shot, mean of top 1 and 5",
    "zero_shot_map": "zero-shot, mAP of tags",
    "zero_shot_map_11_point": "zero-shot, 11-point mAP of tags",
    "tags_map": "mAP of tags",
    "tags_map_11_point": "11-point mAP of tags",
}


@dataclass(frozen=True)
class Row:
    """One score; of the paper's figure beside it, if there is one, value and source."""

    model: str
    dataset: str
    metric: str
    value: float
    seed: int
    published: float | None = None
    source: str = ""

    @property
    def difference(self) -> float | None:
        """Ours less the paper's."""
        return None if self.published is None else self.value - self.published


def lower_is_better(metric: str) -> bool:
    """Return whether smaller values of a metric are better; `better` in the table says so."""
    return metric.endswith("median_rank")


def published_figures(text: str) -> list[dict[str, Any]]:
    """Return the paper's figures from a config file's name, or from JSON; [] if `text` is empty."""
    if text.lstrip().startswith("["):
        try:
            found: list[dict[str, Any]] = json.loads(text)
        except ValueError as error:
            raise UserError(f"--figures: not readable as JSON ({error})") from None
        keys: dict[str, type | tuple[type, ...]] = {
            "dataset": str,
            "metric": str,
            "value": (int, float),
            "source": str,
        }
        for figure in found:
            for key, form in keys.items():
                if not isinstance(figure, dict) or not isinstance(figure.get(key), form):
                    raise UserError(
                        f"--figures: {json.dumps(figure)} has no {key}; give {', '.join(keys)} of "
                        "each, or the name of a config file"
                    )
        return found
    return comparison.figures(load(text)) if text else []


def summary_part(
    paths: Sequence[str],
    output: str | os.PathLike[str],
    figures: Sequence[dict[str, Any]] = (),
) -> None:
    """Write `output` (.csv) and beside it the same name as .md and .svg.

    `figures` are the paper's, as :func:`mlcd.config.comparison.figures` gives them. Raises
    :class:`UserError` if `output` is no .csv, or if a file is not what `--part metrics` writes.
    """
    target = Path(output)
    if target.suffix != ".csv":
        raise UserError(f"--output: {target}: expected a name that ends in .csv")
    claim(target, target.with_suffix(".md"), target.with_suffix(".svg"))
    models = [_read(path) for path in paths]
    rows = table(models, figures)
    if not rows:
        raise UserError(
            f"{paths[0]}: holds no scores; run --part metrics, with --text of the tower"
        )
    write_text(target.with_suffix(".md"), markdown(models, rows))
    draw(rows, target.with_suffix(".svg"))
    weights = {model["model"]: model.get("encoder_sha256", "") for model in models}
    lines = []
    for row in rows:
        better = "lower" if lower_is_better(row.metric) else "higher"
        numbers = [_cell(row.published), _cell(row.difference)]
        lines.append([row.model, row.dataset, row.metric, _cell(row.value), row.seed, better,
                      *numbers, weights.get(row.model, "")])  # fmt: skip
    write_csv(target, COLUMNS, lines)


def table(models: Sequence[dict[str, Any]], figures: Sequence[dict[str, Any]] = ()) -> list[Row]:
    """Return one row per data set, metric and model, chance before the models.

    Chance belongs to the data set and not to a model; it carries the first model's seed. Scores of
    the text tower are of models that have one; the others have no row of them. Where all
    sets of the paper are judged, their means follow. Of the trained encoder's rows, those of a
    published data set and metric carry the figure.
    """
    rows: list[Row] = []
    datasets = dict.fromkeys(name for model in models for name in model["datasets"])
    for dataset in datasets:
        judged = [model for model in models if dataset in model["datasets"]]
        metrics = (name for model in judged for name in model["datasets"][dataset]["scores"])
        for metric in dict.fromkeys(metrics):
            having = [m for m in judged if metric in m["datasets"][dataset]["scores"]]
            lacking = [m["model"] for m in judged if m not in having]
            if lacking and not of_tower(metric):
                raise UserError(
                    f"{lacking[0]}: no {metric} on {dataset}, which {having[0]['model']} "
                    "has; run --part metrics of both with one config"
                )
            chance = having[0]["datasets"][dataset]["chance"][metric]
            rows.append(Row(CHANCE, dataset, metric, chance, having[0]["seed"]))
            for model in having:
                value = model["datasets"][dataset]["scores"][metric]
                rows.append(Row(model["model"], dataset, metric, value, model["seed"]))
    rows += _means(rows)
    known = {(figure["dataset"], figure["metric"]): figure for figure in figures}
    return [
        replace(row, published=figure["value"], source=figure["source"])
        if row.model == JUDGED and (figure := known.get((row.dataset, row.metric)))
        else row
        for row in rows
    ]


def _means(rows: Sequence[Row]) -> list[Row]:
    """Return the means over the paper's sets where all are judged: probes, and zero-shot.

    Probes over CLIP's 26 sets, and with ImageNet over 27; zero-shot over 25. Each set counts by its
    own measure, as in the paper.
    """
    probed = published_sets()
    small = [name for name in probed if name != "imagenet"]
    means = [
        ("linear_probe", small, score_name),
        ("linear_probe", probed, score_name),
        ("zero_shot", zero_shot_sets(), zero_shot_name),
    ]
    found = []
    for metric, sets, name_of in means:
        measure = {name: name_of(registry()[name]["metric"]) for name in sets}
        for model in dict.fromkeys(row.model for row in rows):
            values = {
                row.dataset: row
                for row in rows
                if row.model == model and row.metric == measure.get(row.dataset)
            }
            if set(sets) <= set(values):
                mean = sum(values[name].value for name in sets) / len(sets)
                seed = values[sets[0]].seed
                found.append(Row(model, f"mean_of_{len(sets)}", metric, mean, seed))
    return found


def markdown(models: Sequence[dict[str, Any]], rows: Sequence[Row]) -> str:
    """Return a table per data set: models down, metrics across, and what the figures rest on."""
    lines = ["# Evaluation", ""]
    for dataset in dict.fromkeys(row.dataset for row in rows):
        here = [row for row in rows if row.dataset == dataset]
        metrics = list(dict.fromkeys(row.metric for row in here))
        values = {(row.model, row.metric): row.value for row in here}
        best = {}
        for metric in metrics:
            choose = min if lower_is_better(metric) else max
            best[metric] = choose(row.value for row in here if row.metric == metric)
        lines += [f"## {dataset}", "", "| model | " + " | ".join(map(words, metrics)) + " |"]
        lines.append("|---" + "|---:" * len(metrics) + "|")
        for model in dict.fromkeys(row.model for row in here):
            cells = [_cell(values.get((model, metric))) for metric in metrics]
            cells = [
                f"**{cell}**" if values.get((model, metric)) == best[metric] else cell
                for cell, metric in zip(cells, metrics, strict=True)
            ]
            lines.append(f"| {model} | " + " | ".join(cells) + " |")
        lines += _beside(here, metrics)
        grounds: dict[str, Any] = {}
        for about in models:
            grounds = {**about["datasets"].get(dataset, {}), **grounds}
        lines += ["", *(_grounds(grounds) if grounds else []), ""]
    lines += [
        "k-NN and linear probe: accuracy, unless another measure is named. R@k: one of the k "
        "nearest test images is of the same class. Image to text, text to image: one of the k "
        "nearest captions is the image's, one of the k nearest images the caption's. chance: "
        "one answer for all images, the largest class of train; the share of images with a "
        "tag; a class, or k images or captions, drawn. Bold: best of the column.",
        "",
        MARKDOWN_MARK,
        "",
    ]
    return "\n".join(lines)


def _beside(rows: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    """Return the lines of the paper's figures and of ours less theirs, if there are any."""
    found = {row.metric: row for row in rows if row.published is not None}
    if not found:
        return []
    theirs = [_cell(found[m].published) if m in found else "" for m in metrics]
    gains = [f"{found[m].difference:+.{DIGITS}f}" if m in found else "" for m in metrics]
    sources = "; ".join(dict.fromkeys(row.source for row in found.values()))
    return [
        "| published | " + " | ".join(theirs) + " |",
        f"| {JUDGED} − published | " + " | ".join(gains) + " |",
        "",
        f"published: {sources}.",
    ]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.{DIGITS}f}"


def words(metric: str) -> str:
    """Return a metric's name for people."""
    if metric.startswith("knn_"):
        return f"k-NN, k = {metric.removeprefix('knn_')}"
    if metric.startswith("shared_tags_"):
        return f"tags shared, {metric.removeprefix('shared_tags_')} nearest"
    if metric.startswith("retrieval_r"):
        return f"R@{metric.removeprefix('retrieval_r')}"
    if metric.startswith(("image_to_text_r", "text_to_image_r")):
        way, k = metric.rsplit("_r", 1)
        return f"{way.replace('_', ' ')} R@{k}"
    return _WORDS.get(metric, metric)


def draw(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Draw one panel per data set: a group of bars per metric, chance as a line across it."""
    from mlcd.utils import charts

    datasets = list(dict.fromkeys(row.dataset for row in rows))
    most = max(len({row.metric for row in rows if row.dataset == name}) for name in datasets)
    with charts.style():
        chart = charts.figure(max(8, most), 3.2 * len(datasets))
        panels = chart.subplots(len(datasets), 1, squeeze=False)
        for axes, dataset in zip(panels[:, 0], datasets, strict=True):
            _panel(axes, [row for row in rows if row.dataset == dataset], dataset)
    with atomic_path(path) as temporary:
        temporary.write_bytes(charts.rendered(chart, "svg"))


def _panel(axes: Any, rows: Sequence[Row], dataset: str) -> None:
    from mlcd.utils import charts

    metrics = list(dict.fromkeys(row.metric for row in rows))
    models = [name for name in dict.fromkeys(row.model for row in rows) if name != CHANCE]
    values = {(row.model, row.metric): row.value for row in rows}
    width = 0.8 / len(models)
    for index, model in enumerate(models):
        own = [place for place, metric in enumerate(metrics) if (model, metric) in values]
        places = [place - 0.4 + (index + 0.5) * width for place in own]
        heights = [values[model, metrics[place]] for place in own]
        color = charts.MODELS.get(model, charts.GREEN)
        bars = axes.bar(places, heights, 0.92 * width, color=color, label=model)
        axes.bar_label(bars, fmt="%.3f", padding=2, fontsize=8)
    for place, metric in enumerate(metrics):
        axes.hlines(
            values[CHANCE, metric],
            place - 0.42,
            place + 0.42,
            colors=charts.INK,
            linestyles="dotted",
            label=CHANCE if place == 0 else None,
        )
    axes.set_xticks(
        range(len(metrics)), [words(metric).replace(" R@", "\nR@") for metric in metrics]
    )
    axes.set_ylim(0, min(1.0, 1.25 * max(values.values())) or 1.0)
    axes.set_title(dataset)
    charts.grid_only(axes, "y")
    axes.legend(ncols=len(models) + 1, loc="upper left")


def _grounds(found: dict[str, Any]) -> list[str]:
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


def _read(path: str) -> dict[str, Any]:
    value = read_record(path, "evaluate")
    if not {"model", "seed", "datasets"} <= set(value):
        raise UserError(f"{path}: not the metrics of a model; run --part metrics again")
    return value

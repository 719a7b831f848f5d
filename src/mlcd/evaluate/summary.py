"""All models side by side: a table for programs, one for people, and a picture."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlcd.errors import UserError
from mlcd.evaluate.scores import DIGITS
from mlcd.files import atomic_path, read_json, write_text

COLUMNS = ("model", "dataset", "metric", "value", "seed")
CHANCE = "chance"
#: Okabe and Ito's colours, which colour-blind people tell apart.
_COLOURS = {
    "pixels": "#999999",
    "random": "#e69f00",
    "trained": "#0072b2",
    "frozen": "#009e73",
}
_WORDS = {
    "linear_probe": "linear probe",
    "tags_map": "mAP of tags",
}
Row = tuple[str, str, str, float, int]


def summary_part(paths: Sequence[str], output: str | os.PathLike[str]) -> None:
    """Write `output` (.csv) and beside it the same name as .md and .svg.

    Raises :class:`UserError` if `output` is no .csv, or if a file is not what `--part metrics`
    writes.
    """
    target = Path(output)
    if target.suffix != ".csv":
        raise UserError(f"--output: {target}: expected a name that ends in .csv")
    models = [_read(path) for path in paths]
    rows = table(models)
    write_text(target.with_suffix(".md"), markdown(models, rows))
    draw(rows, target.with_suffix(".svg"))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([*row[:3], f"{row[3]:.{DIGITS}f}", row[4]] for row in rows)
    write_text(target, text.getvalue())


def table(models: Sequence[dict[str, Any]]) -> list[Row]:
    """Return one row a data set, metric and model, chance before the models.

    Chance belongs to the data set and not to a model; it carries the first model's seed.
    """
    rows: list[Row] = []
    datasets = dict.fromkeys(name for model in models for name in model["datasets"])
    for dataset in datasets:
        judged = [model for model in models if dataset in model["datasets"]]
        first = judged[0]["datasets"][dataset]
        for metric in first["scores"]:
            rows.append((CHANCE, dataset, metric, first["chance"][metric], judged[0]["seed"]))
            for model in judged:
                value = model["datasets"][dataset]["scores"].get(metric)
                if value is None:
                    raise UserError(
                        f"{model['model']}: no {metric} on {dataset}, which {judged[0]['model']} "
                        "has; run --part metrics of both with one config"
                    )
                rows.append((model["model"], dataset, metric, value, model["seed"]))
    return rows


def markdown(models: Sequence[dict[str, Any]], rows: Sequence[Row]) -> str:
    """Return a table a data set: models down, metrics across, and what the figures rest on."""
    lines = ["# Evaluation", ""]
    for dataset in dict.fromkeys(row[1] for row in rows):
        here = [row for row in rows if row[1] == dataset]
        metrics = list(dict.fromkeys(row[2] for row in here))
        values = {(row[0], row[2]): row[3] for row in here}
        best = {
            metric: max(values[row[0], metric] for row in here if row[2] == metric)
            for metric in metrics
        }
        lines += [f"## {dataset}", "", "| model | " + " | ".join(map(words, metrics)) + " |"]
        lines.append("|---" + "|---:" * len(metrics) + "|")
        for model in dict.fromkeys(row[0] for row in here):
            cells = [
                f"**{values[model, metric]:.{DIGITS}f}**"
                if values[model, metric] == best[metric]
                else f"{values[model, metric]:.{DIGITS}f}"
                for metric in metrics
            ]
            lines.append(f"| {model} | " + " | ".join(cells) + " |")
        lines += ["", *_grounds(next(m["datasets"][dataset] for m in models)), ""]
    lines += [
        "k-NN and linear probe: accuracy. chance: the largest class of train, or the share of "
        "pictures with a tag. Bold: best of the column.",
        "",
    ]
    return "\n".join(lines)


def words(metric: str) -> str:
    """Return a metric's name for people."""
    if metric.startswith("knn_"):
        return f"k-NN, k = {metric.removeprefix('knn_')}"
    return _WORDS.get(metric, metric)


def draw(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Draw one panel a data set: a group of bars a metric, chance as a line across it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    datasets = list(dict.fromkeys(row[1] for row in rows))
    style = {"svg.fonttype": "none", "svg.hashsalt": "mlcd", "font.size": 10}
    with matplotlib.rc_context(style):
        figure, panels = pyplot.subplots(
            len(datasets), 1, figsize=(8, 3.2 * len(datasets)), squeeze=False, layout="constrained"
        )
        for axes, dataset in zip(panels[:, 0], datasets, strict=True):
            _panel(axes, [row for row in rows if row[1] == dataset], dataset)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def _panel(axes: Any, rows: Sequence[Row], dataset: str) -> None:
    metrics = list(dict.fromkeys(row[2] for row in rows))
    models = [name for name in dict.fromkeys(row[0] for row in rows) if name != CHANCE]
    values = {(row[0], row[2]): row[3] for row in rows}
    width = 0.8 / len(models)
    for index, model in enumerate(models):
        places = [place - 0.4 + (index + 0.5) * width for place in range(len(metrics))]
        heights = [values[model, metric] for metric in metrics]
        bars = axes.bar(places, heights, 0.92 * width, color=_COLOURS.get(model), label=model)
        axes.bar_label(bars, fmt="%.3f", padding=2, fontsize=8)
    for place, metric in enumerate(metrics):
        axes.hlines(
            values[CHANCE, metric],
            place - 0.42,
            place + 0.42,
            colors="black",
            linestyles="dotted",
            label=CHANCE if place == 0 else None,
        )
    axes.set_xticks(range(len(metrics)), [words(metric) for metric in metrics])
    axes.set_ylim(0, min(1.0, 1.25 * max(values.values())) or 1.0)
    axes.set_title(dataset, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(models) + 1, loc="upper left", fontsize=8)


def _grounds(found: dict[str, Any]) -> list[str]:
    """Return sentences on the pictures, classes and tags that the figures rest on."""
    pictures = found["pictures"]
    failed = sum(pictures["failed"].values())
    sentence = f"{pictures['train']} train and {pictures['test']} test pictures"
    if failed:
        reasons = ", ".join(f"{reason} {count}" for reason, count in pictures["failed"].items())
        sentence += f"; {failed} more could not be decoded ({reasons})"
    lines = [sentence + "."]
    if classes := found.get("classes"):
        sentence = f"{classes['in_train']} classes in train"
        if single := classes["with_one_train_picture"]:
            sentence += f", {single} of them with one picture"
        if unseen := classes["test_pictures_of_unseen_classes"]:
            sentence += f"; {unseen} test pictures of other classes count as wrong"
        if unlabelled := classes["unlabelled_pictures"]:
            sentence += f"; {unlabelled} pictures without a class are left out"
        lines.append(sentence + ".")
    if tags := found.get("tags"):
        lines.append(f"{tags['kept']} tags; {tags['too_rare']} on too few pictures are left out.")
    return lines


def _read(path: str) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict) or not {"model", "seed", "datasets"} <= set(value):
        raise UserError(f"{path}: not the metrics of a model; run --part metrics again")
    return value

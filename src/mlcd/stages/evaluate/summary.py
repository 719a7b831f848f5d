"""All models side by side: a table for programs, one for people, and an image."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlcd.config import comparison, load
from mlcd.config.labeled import lower_is_better, only_describes
from mlcd.config.registry import published_sets, registry, zero_shot_sets
from mlcd.stages.evaluate.chosen import DIGITS
from mlcd.stages.evaluate.grounds import regions_by_group, sentences
from mlcd.stages.evaluate.measures import of_some, score_name, zero_shot_name
from mlcd.utils import glossary
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
    first: dict[str, str] = {}
    for path, model in zip(paths, models, strict=True):
        if (other := first.setdefault(model["model"], path)) != path:
            raise UserError(f"{path}: scores of {model['model']}, as {other} has; give one of them")
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
        better = "" if only_describes(row.metric) else better
        numbers = [_cell(row.published), _cell(row.difference)]
        lines.append([row.model, row.dataset, row.metric, _cell(row.value), row.seed, better,
                      *numbers, weights.get(row.model, "")])  # fmt: skip
    write_csv(target, COLUMNS, lines)


def table(models: Sequence[dict[str, Any]], figures: Sequence[dict[str, Any]] = ()) -> list[Row]:
    """Return one row per data set, metric and model, chance before the models.

    Chance belongs to the data set and not to a model; it carries the first model's seed. Scores of
    the text tower and of fine-tuning are of some models; the others have no row of them. Where all
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
            if lacking and not of_some(metric):
                raise UserError(
                    f"{lacking[0]}: no {metric} on {dataset}, which {having[0]['model']} "
                    "has; run --part metrics of both with one config"
                )
            # Of some scores, such as a spread, there is no chance.
            if metric in (chances := having[0]["datasets"][dataset]["chance"]):
                rows.append(Row(CHANCE, dataset, metric, chances[metric], having[0]["seed"]))
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
    """Return a table per data set: metrics down, models across, and what the figures rest on."""
    lines = ["# Evaluation", ""]
    for dataset in dict.fromkeys(row.dataset for row in rows):
        here = [row for row in rows if row.dataset == dataset]
        lines += [f"## {dataset}", "", *_scores(here)]
        grounds: dict[str, Any] = {}
        for about in models:
            grounds = {**about["datasets"].get(dataset, {}), **grounds}
        lines += ["", *(sentences(grounds) if grounds else []), ""]
        lines += regions_by_group({about["model"]: about["datasets"].get(dataset, {})
                                   for about in models})  # fmt: skip
    lines += [
        "R@k: one of the k nearest test images is of the same class. Image to text, text to image: "
        "one of the k nearest captions is the image's, one of the k nearest images the caption's. "
        "chance: one answer for all images, the largest class of train; the share of images with a "
        "tag; a class, or k images or captions, drawn. Bold: best of the row, where one is.",
        "",
        MARKDOWN_MARK,
        "",
    ]
    return "\n".join(lines)


def _scores(rows: Sequence[Row]) -> list[str]:
    """Return the lines of one data set's table, whose columns are even in a terminal too."""
    models = list(dict.fromkeys(row.model for row in rows))
    values = {(row.model, row.metric): row.value for row in rows}
    theirs = {row.metric: row for row in rows if row.published is not None}
    head = ["metric", *map(glossary.model, models)]
    head += ["published", f"{JUDGED} − published"] if theirs else []
    lines = [head]
    for metric in dict.fromkeys(row.metric for row in rows):
        choose = min if lower_is_better(metric) else max
        measured = [row.value for row in rows if row.metric == metric]
        best = None if only_describes(metric) else choose(measured)
        cells = [_cell(values.get((model, metric))) for model in models]
        line = [glossary.metric(metric)] + [
            f"**{cell}**" if cell and values.get((model, metric)) == best else cell
            for model, cell in zip(models, cells, strict=True)
        ]
        if theirs:
            row = theirs.get(metric)
            line.append(_cell(row.published) if row else "")
            line.append(f"{row.difference:+.{DIGITS}f}" if row else "")
        lines.append(line)
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    found = [
        f"| {line[0]:<{widths[0]}} | "
        + " | ".join(f"{cell:>{wide}}" for cell, wide in zip(line[1:], widths[1:], strict=True))
        + " |"
        for line in lines
    ]
    rules = [f"|{'-' * (widths[0] + 2)}|" + "|".join("-" * (w + 1) + ":" for w in widths[1:]) + "|"]
    sources = "; ".join(dict.fromkeys(row.source for row in theirs.values()))
    return [found[0], *rules, *found[1:], *(["", f"published: {sources}."] if theirs else [])]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.{DIGITS}f}"


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
        bars = axes.bar(places, heights, 0.92 * width, color=color, label=glossary.model(model))
        axes.bar_label(bars, fmt="%.3f", padding=2, fontsize=8)
    by_chance = [place for place, metric in enumerate(metrics) if (CHANCE, metric) in values]
    for place in by_chance:
        axes.hlines(
            values[CHANCE, metrics[place]],
            place - 0.42,
            place + 0.42,
            colors=charts.INK,
            linestyles="dotted",
            label=CHANCE if place == by_chance[0] else None,
        )
    names = [glossary.metric(metric).replace(", ", ",\n") for metric in metrics]
    axes.set_xticks(range(len(metrics)), [name.replace(" R@", "\nR@") for name in names])
    axes.set_ylim(0, min(1.0, 1.25 * max(values.values())) or 1.0)
    axes.set_title(dataset)
    charts.grid_only(axes, "y")
    axes.legend(ncols=len(models) + 1, loc="upper left")


def _read(path: str) -> dict[str, Any]:
    value = read_record(path, "evaluate")
    if not {"model", "seed", "datasets"} <= set(value):
        raise UserError(f"{path}: not the metrics of a model; run --part metrics again")
    return value

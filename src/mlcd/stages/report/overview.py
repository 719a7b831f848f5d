"""Part `overview`: the run in a minute: what was done, how well, some clusters, what next."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from mlcd.config import Report
from mlcd.data.centroids import Centroids
from mlcd.data.image_store import read_manifest
from mlcd.stages.report import curves, verdict
from mlcd.stages.report.accounts import split_nodes
from mlcd.stages.report.gallery import Gallery
from mlcd.stages.report.page import Drawing, render
from mlcd.stages.report.pipeline import Box, drawn
from mlcd.stages.report.results import ordered, score_table
from mlcd.stages.report.runlog import stage_of
from mlcd.utils.errors import UserError
from mlcd.utils.records import read_record
from mlcd.utils.units import decimal_size, duration

#: Clusters and images of each that are shown, and pixels of an image.
_CLUSTERS, _IMAGES, _SIDE = 4, 5, 80
#: Data sets whose scores are shown, and sources that are named.
_SETS, _SOURCES = 3, 4


def draw(
    section: Report,
    images: Sequence[str],
    embeddings: Sequence[str] | None,
    labels: Sequence[str],
    centroids: str | None,
    summary: str,
    metrics: str,
    scores: str | None,
    resolved: str,
    jobs: str | None,
) -> Drawing:
    """Draw the first page, from a finished run's files; `jobs` is the efficiency page's table."""
    config = _config(resolved)
    manifests = [read_manifest(path) for path in images]
    labeled = read_record(summary, "label")
    values = curves.read_metrics(metrics, "train")
    clusters = Centroids(centroids) if centroids else None
    took = _Jobs(jobs)
    frame = verdict.read(scores) if scores else None
    means = verdict.means_of(frame) if frame is not None else None
    lead = "Nothing was evaluated: evaluate.datasets of the config is empty."
    tables: list[tuple[str, Markup]] = []
    if means is not None:
        lead = f"{verdict.learned(means)}. {verdict.beside_frozen(means)}".strip()
        sets = list(dict.fromkeys(means.index.get_level_values("dataset")))
        models = ordered(means.index.get_level_values("model"))
        tables = [(name, score_table(means.loc[name], models)) for name in sets[:_SETS]]
    arrived = sum(manifest["counts"].get("success", 0) for manifest in manifests)
    model = _of(config, "train", "model") or "encoder"
    boxes = list(_boxes(config, manifests, labeled, values, clusters, means, took))
    body = render(
        "overview.html",
        facts=list(_facts(config, manifests, labeled, values, took)),
        pipeline=drawn(boxes),
        tables=tables,
        more=max(0, len(set(means.index.get_level_values("dataset"))) - _SETS)
        if means is not None
        else 0,
        clusters=_clusters(section, images, embeddings, labels),
        results=_of(config, "results") if _is_plain(_of(config, "results")) else "results",
    )
    return Drawing(f"{model}, trained on {arrived:,} images without labels by hand", lead, body)


def _config(path: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        raise UserError(f"{path}: no readable config; write the resolved config first") from None
    return found if isinstance(found, dict) else {}


def _of(config: dict[str, Any], *keys: str) -> Any:
    """Return a value of the config, None where a key is missing."""
    value: Any = config
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _is_plain(name: Any) -> bool:
    """Return whether a folder can stand in a page: a machine's absolute paths may not."""
    return isinstance(name, str) and not Path(name).is_absolute()


class _Jobs:
    """What the jobs took: rows of efficiency.csv. Without that file nothing is known."""

    def __init__(self, path: str | None) -> None:
        self.rows: list[dict[str, str]] = []
        if path:
            try:
                with Path(path).open(encoding="utf-8", newline="") as file:
                    self.rows = list(csv.DictReader(file))
            except (OSError, UnicodeDecodeError, csv.Error):
                raise UserError(f"{path}: not readable; rerun report --part efficiency") from None

    def of(self, stage: str) -> tuple[str, str, str]:
        """Return in words the state of a stage, what its jobs took, and how many tries failed."""
        mine = [row for row in self.rows if stage_of(row.get("rule", "")) == stage]
        if not mine:
            return "", ("no job in this run's logs" if self.rows else ""), ""
        names = {(row["rule"], row.get("wildcards")) for row in mine}
        time = duration(_covered(mine))
        failed = sum(row.get("state") == "failed" for row in mine)
        made = {(row["rule"], row.get("wildcards")) for row in mine if row.get("state") == "done"}
        state = "done" if made == names else "not done"
        said = f"{time}, {len(names):,} job{'s' * (len(names) != 1)}"
        return state, said, f"{failed:,} failed" if failed else ""

    def total(self) -> str:
        """Return in words how long any job was at work, and on how many nodes."""
        if not self.rows:
            return ""
        nodes = {name for row in self.rows for name in split_nodes(row.get("nodes") or "")}
        tries = sum(int(_number(row.get("tries")) or 1) for row in self.rows)
        where = f" on {len(nodes):,} node{'s' * (len(nodes) != 1)}" if nodes else ""
        jobs = len({(row["rule"], row.get("wildcards")) for row in self.rows})
        counted = f"{jobs:,} jobs" + (f" in {tries:,} tries" if tries != jobs else "")
        return f"{duration(_covered(self.rows))} at work{where}, {counted}"


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _covered(rows: Iterable[dict[str, str]]) -> float:
    """Return the seconds in which at least one of the jobs was at work."""
    spans = []
    for row in rows:
        start, run = _number(row.get("started")), _number(row.get("run"))
        if run is not None:
            end = _number(row.get("ended"))
            # Clocks of Snakemake's logs count whole seconds, benchmarks parts of them.
            begin = start if start is not None else (end or 0.0) - run
            spans.append((begin, begin + run))
    seconds, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        seconds += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return seconds


def _facts(
    config: dict[str, Any],
    manifests: Sequence[dict[str, Any]],
    labeled: dict[str, Any],
    values: dict[str, np.ndarray],
    took: _Jobs,
) -> Iterator[tuple[str, str]]:
    rows = sum(manifest["rows"] for manifest in manifests)
    arrived = sum(manifest["counts"].get("success", 0) for manifest in manifests)
    size = sum(tar["bytes"] for manifest in manifests for tar in manifest["tars"])
    sources = [
        path if _is_plain(path) else Path(str(path)).name for path in _of(config, "metadata") or []
    ]
    more = f" and {len(sources) - _SOURCES} more" if len(sources) > _SOURCES else ""
    of = f" of {rows:,} asked for" if rows != arrived else ""
    where = f", from {', '.join(sources[:_SOURCES])}{more}" if sources else ""
    yield "images", f"{arrived:,}{of}, {decimal_size(size)}{where}"
    if frozen := _of(config, "embed", "model"):
        yield "frozen encoder", f"{frozen}: its embeddings were clustered"
    yield "clusters", f"K = {labeled['num_classes']:,}"
    yield "labels", f"l = {labeled['labels_per_image']:,} per image at most, the nearest clusters"
    if model := _of(config, "train", "model"):
        size = _of(config, "train", "image_size")
        yield "trained encoder", f"{model}{f', {size} pixels' if size else ''}"
    epochs, batch = _of(config, "train", "epochs"), _of(config, "train", "batch_size")
    about = f", {epochs:g} epochs" if isinstance(epochs, int | float) else ""
    about += f", {batch:,} images per step" if isinstance(batch, int) else ""
    yield "training", f"{int(values['step'][-1]):,} steps{about}"
    if total := took.total():
        yield "time", total


def _boxes(
    config: dict[str, Any],
    manifests: Sequence[dict[str, Any]],
    labeled: dict[str, Any],
    values: dict[str, np.ndarray],
    clusters: Centroids | None,
    means: Any,
    took: _Jobs,
) -> Iterator[Box]:
    """Iterate over the boxes of the stages, in the order of the data."""
    rows = sum(manifest["rows"] for manifest in manifests)
    arrived = sum(manifest["counts"].get("success", 0) for manifest in manifests)
    chunks = f"{len(manifests):,} chunk{'s' * (len(manifests) != 1)}"
    images = f"{labeled['images']:,} images"
    yield Box("prepare", (f"{rows:,} rows", f"→ {chunks}"), *took.of("prepare"), "download")
    yield Box(
        "download", (f"{rows:,} rows", f"→ {arrived:,} images"), *took.of("download"), "download"
    )
    if clusters is not None:
        yield Box(
            "embed", (f"{arrived:,} images", f"→ vectors of {clusters.d:,} numbers"),
            *took.of("embed"), "montage",
        )  # fmt: skip
        if _of(config, "curate", "enabled"):
            yield Box(
                "curate", (f"{arrived:,} images", f"→ {labeled['images']:,} kept"),
                *took.of("curate"), "curate",
            )  # fmt: skip
        if _of(config, "regions", "source"):
            most = f"→ {_of(config, 'regions', 'most'):,} regions each at most"
            yield Box("regions", (images, most), *took.of("regions"), "cluster")
        yield Box(
            "cluster", (f"{int(clusters.sizes.sum()) or arrived:,} vectors",
                        f"→ {len(clusters.sizes):,} clusters"),
            *took.of("cluster"), "cluster",
        )  # fmt: skip
    yield Box(
        "label", (images, f"→ {labeled['labels_per_image']:,} labels each at most"),
        *took.of("label"), "label",
    )  # fmt: skip
    first, last = curves.ends(values.get("loss", np.empty(0)))
    loss = f"loss {first:.3g} → {last:.3g}" if math.isfinite(last) else "loss not recorded"
    yield Box(
        "train", (f"{images}, {int(values['step'][-1]):,} steps", loss), *took.of("train"), "train"
    )
    if _of(config, "text", "enabled"):
        yield Box("text", ("images and captions", "→ text tower"), *took.of("text"), "text")
    if means is not None:
        sets = set(means.index.get_level_values("dataset"))
        models = set(means.index.get_level_values("model")) - {"chance"}
        line = f"{len(models)} models, {len(sets):,} data set{'s' * (len(sets) != 1)}"
        scores = f"→ {len(verdict.metrics_of(means)):,} metrics"
        yield Box("evaluate", (line, scores), *took.of("evaluate"), "results")
    if formats := _of(config, "export", "formats"):
        names = ", ".join(map(str, formats))
        yield Box("export", ("the encoder", f"→ {names}"), *took.of("export"), "provenance")


def _clusters(
    section: Report,
    images: Sequence[str],
    embeddings: Sequence[str] | None,
    labels: Sequence[str],
) -> list[dict[str, Any]]:
    """Return some clusters by chance, of those with images enough, nearest to the center first."""
    gallery = Gallery(section, images, embeddings, labels)
    sizes = np.bincount(gallery.nearest[gallery.nearest >= 0], minlength=gallery.num_classes)
    enough = np.flatnonzero(sizes >= _IMAGES)
    if len(enough) < _CLUSTERS:
        enough = np.argsort(-sizes, kind="stable")[:_CLUSTERS]
        enough = enough[sizes[enough] > 0]
    chosen = np.random.default_rng(section.seed).choice(
        len(enough), min(_CLUSTERS, len(enough)), replace=False
    )
    members = gallery.members(int(enough[place]) for place in chosen)
    shown = {cluster: of[:_IMAGES] for cluster, of in sorted(members.items())}
    tiles = gallery.tiles((gallery.place(i) for of in shown.values() for i in of), _SIDE)
    return [
        {"number": cluster, "tiles": [tiles[gallery.place(i)] for i in of]}
        for cluster, of in shown.items()
    ]

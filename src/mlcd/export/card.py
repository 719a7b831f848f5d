"""The model card beside exported weights: what it is, how to load it, what it was made from.

All of it is read from the run's own files; nothing is typed in by hand but the licence, which is
the config's.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mlcd.errors import UserError
from mlcd.files import write_text
from mlcd.stores.centroids import Centroids
from mlcd.stores.h5 import reading
from mlcd.stores.labels import Labels

_COLUMNS = ("model", "dataset", "metric", "value")
#: Models of the results, in the order of the card's columns.
_MODELS = ("trained", "random", "frozen", "pixels", "chance")

#: How metrics begin that the text tower takes part in.
_OF_TEXT = ("zero_shot", "image_to_text", "text_to_image")


@dataclass(frozen=True)
class Usage:
    """How a library loads the folder: its name, an example in Python, a remark."""

    library: str
    example: str
    remark: str


@dataclass(frozen=True)
class Origin:
    """What the weights were made from.

    `lists`: names of the URL lists; `clusters`: facts of the centres, name → value; `sections`:
    settings of the stages before train, section → key → value; `results`: (data set, metric) →
    model → value. Empty where the files were not given.
    """

    lists: list[str] = field(default_factory=list)
    clusters: dict[str, str] = field(default_factory=dict)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    results: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)


def origin(
    lists: list[str],
    centroids: str | None,
    labels: str | None,
    summary: str | None,
    about: dict[str, Any],
) -> Origin:
    """Read `clusters/centroids.h5`, one chunk's labels and `evaluate/summary.csv`, where given.

    `about` is encoder.json. Raises :class:`UserError` if a file is missing, not what its stage
    writes, or of another run: centres of another number, labels of other centres, scores of other
    weights.
    """
    return Origin(
        [Path(name).name for name in lists],
        _clusters(centroids, about.get("num_classes")) if centroids else {},
        _sections(centroids, labels, about.get("num_classes")),
        _results(summary, about["sha256"]) if summary else {},
    )


def write(
    folder: Path,
    about: dict[str, Any],
    usage: Usage,
    made_from: Origin,
    licence: str | None,
    files: dict[str, str],
) -> None:
    """Write README.md with the front matter that model hubs read.

    `about` is encoder.json; `files` are names and SHA-256 of the exported files.
    """
    front = {
        **({"license": licence} if licence else {}),
        "library_name": usage.library,
        "pipeline_tag": "image-feature-extraction",
        "tags": ["mlcd", "vision-encoder", "self-supervised"],
    }
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=False) + "---",
        "# A vision encoder trained by Multi-Label Cluster Discrimination",
        "Trained with [MLCD](https://arxiv.org/abs/2407.17331): pictures are clustered by frozen "
        "features, and the encoder learns to tell each picture's nearest clusters from the rest.",
        _table(("", ""), _model(about)),
        "## Use\n\nWith this folder as the working directory:",
        f"```python\n{usage.example.strip()}\n```",
        usage.remark,
        "## Training data\n\n" + _data(made_from),
        *_training(about, made_from),
        *_scores(made_from),
        "## Files",
        _table(("file", "SHA-256"), [(name, f"`{value}`") for name, value in files.items()]),
        f"Exported from encoder.safetensors, SHA-256 `{about['sha256']}`.",
        "## Licence\n\n" + _licence(licence),
    ]
    write_text(folder / "README.md", "\n\n".join(parts) + "\n")


def _model(about: dict[str, Any]) -> list[tuple[str, str]]:
    mean, std = (", ".join(f"{value:.4f}" for value in about[key]) for key in ("mean", "std"))
    side = about["image_size"]
    facts = [
        ("Architecture", f"`{about['model']}`"),
        ("Embedding", f"{about['embedding_dim']} numbers, not normalised; compare by cosine"),
        ("Input", f"RGB, {side} × {side} pixels: shorter side resized (bicubic), centre cropped"),
        ("Normalisation", f"mean {mean}; standard deviation {std}"),
    ]
    for key, name in (("steps", "Training steps"), ("num_classes", "Clusters told apart")):
        if key in about:
            facts.append((name, f"{about[key]:,}"))
    return facts


def _data(made_from: Origin) -> str:
    """Say what was trained on; the pictures themselves are not part of the export."""
    facts = list(made_from.clusters.items())
    if made_from.lists:
        names = ", ".join(f"`{name}`" for name in made_from.lists)
        facts.insert(0, ("URL lists", names))
    if not facts:
        return "Not recorded: the export was made from the encoder alone."
    return _table(("", ""), facts)


def _training(about: dict[str, Any], made_from: Origin) -> list[str]:
    train = {"train": about["section"]} if "section" in about else {}
    sections = {**made_from.sections, **train}
    if not sections:
        return []
    text = yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)
    words = (
        "Settings, as the run's own files hold them; `embed` says what the clustered features are. "
        "`train.positives: null` takes `label.top` labels a picture (fewer where `label.threshold` "
        "leaves fewer), and the loss `single` the first."
    )
    return ["## Training", f"{words}\n\n```yaml\n{text.strip()}\n```"]


def _scores(made_from: Origin) -> list[str]:
    if not made_from.results:
        return []
    known = {model for values in made_from.results.values() for model in values}
    models = [name for name in _MODELS if name in known] + sorted(known - set(_MODELS))
    rows = [
        (dataset, metric, *(f"{values[m]:.4f}" if m in values else "" for m in models))
        for (dataset, metric), values in made_from.results.items()
    ]
    words = (
        "`trained` is this encoder; `random` the same at random weights, `frozen` the encoder "
        "whose features were clustered. One seed: differences of a few points may be chance."
    )
    if any(metric.startswith(_OF_TEXT) for _, metric in made_from.results):
        words += (
            " Zero-shot scores and those between pictures and texts are with the run's text tower, "
            "which is not part of this export."
        )
    return ["## Results", words, _table(("data set", "metric", *models), rows)]


def _licence(licence: str | None) -> str:
    chosen = (
        f"The weights are given on under `{licence}`, as chosen by who trained them."
        if licence
        else "None was chosen for the weights (config key `export.license`): ask who trained them."
    )
    return (
        f"{chosen} The pictures were fetched by URL and keep the terms of their owners; so does "
        "the frozen encoder whose features were clustered. The code that trained the weights "
        "(mlcd) is under Apache-2.0."
    )


def _clusters(path: str, num_classes: int | None) -> dict[str, str]:
    centroids = Centroids(path)
    if num_classes not in (None, centroids.K):
        raise UserError(
            f"{path}: {centroids.K} clusters, but the encoder was trained on {num_classes}; "
            "give the centroids of the same run"
        )
    with reading(path, "centroids") as file:
        pictures = int(file["size"][:].sum())
    model = json.loads(centroids.model or "{}")
    frozen = " ".join(f"`{model[key]}`" for key in ("name", "pretrained") if model.get(key))
    facts = {
        "Pictures": f"{pictures:,}",
        "Clusters": f"{centroids.K:,}",
        "Clustered features": frozen or "of an unknown encoder",
    }
    if model.get("weights_sha256"):
        facts["That encoder's weights"] = f"SHA-256 `{model['weights_sha256']}`"
    facts["Fingerprint of the centres"] = f"`{centroids.fingerprint}`"
    return facts


def _sections(
    centroids: str | None, labels: str | None, num_classes: int | None
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    centres = Centroids(centroids) if centroids else None
    if centres is not None:
        found = {
            "embed": json.loads(centres.model or "{}"),
            "cluster": json.loads(centres.section),
        }
    if labels:
        file = Labels(labels)
        if num_classes not in (None, file.num_classes) or (
            centres is not None and file.centroids != centres.fingerprint
        ):
            raise UserError(f"{labels}: labels by other centres; give those of the same run")
        found["label"] = json.loads(file.section)
    return {name: values for name, values in found.items() if values}


def _results(path: str, sha256: str) -> dict[tuple[str, str], dict[str, float]]:
    found: dict[tuple[str, str], dict[str, float]] = {}
    weights = set()
    try:
        with Path(path).open(encoding="utf-8", newline="") as handle:
            for row in csv.DictReader(handle):
                model, dataset, metric, value = (row[name] for name in _COLUMNS)
                found.setdefault((dataset, metric), {})[model] = float(value)
                if model == _MODELS[0]:
                    weights.add(row["encoder_sha256"])
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage evaluate first") from None
    except (KeyError, TypeError, ValueError, UnicodeDecodeError):
        raise UserError(f"{path}: not the summary.csv of stage evaluate; rerun it") from None
    if not weights <= {sha256}:
        raise UserError(f"{path}: scores of another encoder; give the summary of this run")
    return found


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table; a bar inside a cell would end it."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", r"\|") for c in line) + " |" for line in lines
    )

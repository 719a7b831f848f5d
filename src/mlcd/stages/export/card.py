"""The model card beside exported weights: what it is, how to load it, what it was made from.

All of it is read from the run's own files; nothing is typed in by hand but the license, which is
the config's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mlcd.data import hdf5
from mlcd.data.centroids import Centroids
from mlcd.data.labels import Labels
from mlcd.stages.export import front_matter
from mlcd.stages.export.encoder_facts import encoder_facts
from mlcd.utils import templates
from mlcd.utils.errors import UserError
from mlcd.utils.files import write_text
from mlcd.utils.records import read_csv
from mlcd.utils.templates import code

_COLUMNS = ("model", "dataset", "metric", "value")
#: Models of the results, in the order of the card's columns.
_MODELS = (front_matter.JUDGED, "random", "frozen", "pixels", "chance")
#: What the example of a library needs, for pip.
_PACKAGES = {
    "timm": "torch torchvision timm",
    "open_clip": "torch torchvision open_clip_torch",
    "transformers": "torch pillow transformers",
}


@dataclass(frozen=True)
class Usage:
    """How a library loads the folder: its name, an example in Python, a remark."""

    library: str
    example: str
    remark: str


@dataclass(frozen=True)
class Origin:
    """What the weights were made from.

    `lists`: names of lists and folders; `clusters`: facts of the centers, name → value;
    `sections`: settings of the stages before train, section → key → value; `results`: (data set,
    metric) → model → value. Empty where the files were not given.
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
    writes, or of another run: centers of another number, labels of other centers, scores of other
    weights.
    """
    return Origin(
        [Path(name).name for name in lists],
        _clusters(centroids, about) if centroids else {},
        _sections(centroids, labels, about),
        _results(summary, about["sha256"]) if summary else {},
    )


def write(
    folder: Path,
    about: dict[str, Any],
    usage: Usage,
    made_from: Origin,
    license: str | None,
    files: dict[str, str],
) -> None:
    """Write README.md with the front matter that model hubs read.

    `about` is encoder.json; `files` are names and SHA-256 of the exported files.
    """
    models, scores = _scores(made_from)
    text = (
        templates.markdown("mlcd.stages.export", "templates")
        .get_template("card.md")
        .render(
            front=front_matter.of(
                about, usage.library, made_from.lists, made_from.results, license
            ).to_yaml(),
            model=_model(about),
            usage=usage,
            packages=_PACKAGES[usage.library],
            data=_data(made_from),
            settings=_settings(about, made_from),
            models=models,
            scores=scores,
            of_text=any(front_matter.of_text(metric) for _, metric in made_from.results),
            of_copy=any(front_matter.of_copy(metric) for _, metric in made_from.results),
            files=[(name, code(value)) for name, value in files.items()],
            sha256=about["sha256"],
            license=license,
            run=front_matter.UNSEALED,
        )
    )
    write_text(folder / "README.md", text)


def _model(about: dict[str, Any]) -> list[tuple[str, str]]:
    mean, std = (", ".join(f"{value:.4f}" for value in about[key]) for key in ("mean", "std"))
    side = about["image_size"]
    facts = [
        ("Architecture", code(about["model"])),
        ("Embedding", f"{about['embedding_dim']} numbers, not normalized; compare by cosine"),
        ("Input", f"RGB, {side} × {side} pixels: shorter side resized (bicubic), center cropped"),
        ("Normalization", f"mean {mean}; standard deviation {std}"),
    ]
    if first := about.get("initial"):
        facts.append(("First weights", f"{code(first['source'])}, SHA-256 {code(first['sha256'])}"))
    if "regions" in about:
        facts.append(("Region layer", "`regions.safetensors`: a vector for each box of an image's "
                      "map. `mlcd.models.region_layer.load(\".\")` takes the map of "
                      "`mlcd.models.feature_maps`; other libraries pass it over"))  # fmt: skip
    for key, name in (("steps", "Training steps"), ("num_classes", "Clusters told apart")):
        if key in about:
            facts.append((name, f"{about[key]:,}"))
    return facts


def _data(made_from: Origin) -> list[tuple[str, str]]:
    """Return what was trained on; the images themselves are not part of the export."""
    names = ", ".join(map(code, made_from.lists))
    lists = [("Lists and folders of images", names)] if names else []
    return lists + list(made_from.clusters.items())


def _settings(about: dict[str, Any], made_from: Origin) -> str:
    """Return the settings of the stages as YAML; empty if none is known."""
    train = {"train": dict(about["section"])} if "section" in about else {}
    if "initial" in about:
        # The name alone: a path says something about the machine, and nothing to others.
        train["train"]["initial"] = about["initial"]["source"]
    sections = {**made_from.sections, **train}
    # YAML knows plain objects only, and those of a file that was read name it in their errors.
    plain = json.loads(json.dumps(sections))
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True) if sections else ""
    return text.strip()


def _scores(made_from: Origin) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the models, this encoder first, and a row per data set and metric."""
    known = {model for values in made_from.results.values() for model in values}
    models = [name for name in _MODELS if name in known] + sorted(known - set(_MODELS))
    rows = [
        (dataset, metric, *(f"{values[m]:.4f}" if m in values else "" for m in models))
        for (dataset, metric), values in made_from.results.items()
    ]
    return models, rows


def _require_made_from(about: dict[str, Any], kind: str, path: str, fingerprint: str) -> None:
    """Raise :class:`UserError` if the encoder notes other files of a `kind` as its origin."""
    known = about.get("made_from", {}).get(kind)
    if known and fingerprint not in known:
        raise UserError(f"{path}: {kind} of another run than the encoder's; give those of its own")


def _clusters(path: str, about: dict[str, Any]) -> dict[str, str]:
    centroids, num_classes = Centroids(path), about.get("num_classes")
    _require_made_from(about, "centroids", path, centroids.fingerprint)
    if num_classes not in (None, centroids.K):
        raise UserError(
            f"{path}: {centroids.K} clusters, but the encoder was trained on {num_classes}; "
            "give the centroids of the same run"
        )
    images = int(centroids.sizes.sum())
    facts = {
        "Images": f"{images:,}" if images else "not known",
        "Clusters": f"{centroids.K:,}",
        **dict(encoder_facts(centroids.described)),
    }
    facts["Fingerprint of the centers"] = f"`{hdf5.verified_fingerprint(path)}`"
    return facts


def _sections(
    centroids: str | None, labels: str | None, about: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    num_classes = about.get("num_classes")
    found: dict[str, dict[str, Any]] = {}
    centers = Centroids(centroids) if centroids else None
    if centers is not None:
        found = {"embed": centers.described, "cluster": centers.settings}
    if labels:
        file = Labels(labels)
        _require_made_from(about, "labels", labels, file.fingerprint)
        if num_classes not in (None, file.num_classes) or (
            centers is not None and file.centroids not in ("", centers.fingerprint)
        ):
            raise UserError(f"{labels}: labels by other centers; give those of the same run")
        found["label"] = file.settings
    return {name: values for name, values in found.items() if values}


def _results(path: str, sha256: str) -> dict[tuple[str, str], dict[str, float]]:
    found: dict[tuple[str, str], dict[str, float]] = {}
    weights = set()
    try:
        for row in read_csv(path, "evaluate"):
            model, dataset, metric, value = (row[name] for name in _COLUMNS)
            found.setdefault((dataset, metric), {})[model] = float(value)
            if model == _MODELS[0]:
                weights.add(row["encoder_sha256"])
    except (KeyError, ValueError):
        raise UserError(f"{path}: not the summary.csv of stage evaluate; rerun it") from None
    if not weights <= {sha256}:
        raise UserError(f"{path}: scores of another encoder; give the summary of this run")
    return found

"""README.md of what is published: what it is, how it is used, whose images it is of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mlcd.commands.publish.croissant import COLUMNS
from mlcd.commands.publish.licenses import License
from mlcd.commands.publish.source import Source, without_places
from mlcd.stages.export.encoder_facts import encoder_facts
from mlcd.stages.export.front_matter import RUN
from mlcd.utils import templates
from mlcd.utils.errors import UserError
from mlcd.utils.files import write_text
from mlcd.utils.templates import code

if TYPE_CHECKING:
    from huggingface_hub import DatasetCardData

FILE = "README.md"
#: Where centers lie in the folder.
CENTERS = "centers/centroids.h5"
#: Rows up to which a data set is of a size, as hubs sort them.
_SIZES = (
    (1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"),
    (10_000_000_000, "1B<n<10B"), (100_000_000_000, "10B<n<100B"),
)  # fmt: skip


def title(source: Source) -> str:
    """Return the name of the data set, which tells of which run it is."""
    return f"mlcd-labels-{source.root[:12]}"


def summary(source: Source) -> str:
    """Return in one or two lines what is published; no word of it is a stranger's."""
    named = "URL and SHA-256" if "url" in source.columns else (
        "path and SHA-256" if "path" in source.columns else "SHA-256")  # fmt: skip
    return (
        f"{source.l} labels for each of {source.rows:,} images, among {source.K:,} clusters, by "
        f"{named}. No image is part of it. Images keep the terms of their owners."
    )


def front(source: Source, license: License) -> DatasetCardData:
    """Return what data set hubs read at the top of a card."""
    from huggingface_hub import DatasetCardData

    other = license.hub == "other"
    size = next((word for most, word in _SIZES if source.rows < most), "n>1T")
    found = DatasetCardData(
        pretty_name=title(source),
        license=license.hub,
        license_name=license.spdx.lower() if other else None,
        license_link=license.url if other else None,
        task_categories=["image-feature-extraction"],
        size_categories=[size],
        tags=["mlcd", "cluster-labels", "self-supervised", "croissant"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/train-*.parquet"}],
            }
        ],
    )
    found[RUN] = source.root
    return found


def write(
    folder: Path, source: Source, license: License, files: Mapping[str, tuple[str, int]]
) -> None:
    """Write the card. `files`: path → SHA-256, bytes. It is read again as hubs read it."""
    from huggingface_hub import DatasetCard

    text = (
        templates.markdown("mlcd.commands.publish", "templates")
        .get_template("card.md")
        .render(
            front=front(source, license).to_yaml(),
            title=title(source),
            summary=summary(source),
            facts=_facts(source),
            columns=[(code(name), COLUMNS[name][1]) for name in source.columns],
            labels=yaml.safe_dump(labels_config(source), sort_keys=False).strip(),
            centers=_centers_config(source),
            named="url" in source.columns,
            on_disk="path" in source.columns,
            resized="stored_sha256" in source.columns,
            captions=source.options.captions,
            opt_out=source.opt_out,
            files=[
                (code(path), f"{size:,}", code(digest)) for path, (digest, size) in files.items()
            ],
            license=license,
            root=source.root,
        )
    )
    write_text(folder / FILE, text)
    # A card that a hub refuses shows itself here, and not after hours of uploading.
    found = DatasetCard(text)
    if found.data.get(RUN) != source.root or not found.text.strip():
        raise UserError(f"{FILE}: not read back as it was written; a defect of mlcd")


def labels_config(source: Source) -> dict[str, Any]:
    """Return the config of a run that takes the published labels; FOLDER is where they lie."""
    shards = "FOLDER/data/*.parquet"
    resized = "stored_sha256" in source.columns
    key = "sha256"
    if resized:
        key = "url" if "url" in source.columns else "stored_sha256"
    value: dict[str, Any] = {"metadata": [shards if "url" in source.columns else "YOUR-IMAGES"]}
    if "caption" not in source.columns and "url" in source.columns:
        value["prepare"] = {"caption_column": None}
    value["cluster"] = {"k": source.K}
    if source.centers is not None:
        value["cluster"]["centers"] = f"FOLDER/{CENTERS}"
    else:
        value["train"] = {"center_init": "random"}
    value["label"] = {"labels": [shards], "key": key, "top": source.l}
    return value


def _centers_config(source: Source) -> str:
    """Return the config of a run that labels other images by the published centers; '' for none."""
    if source.centers is None:
        return ""
    embed = source.settings.get("embed", {})
    keys = ("model", "pretrained", "image_size", "precision")
    value = {
        "metadata": ["YOUR-IMAGES"],
        "embed": {key: embed[key] for key in keys if embed.get(key) is not None},
        "cluster": {"k": source.K, "centers": f"FOLDER/{CENTERS}"},
        "label": {"top": source.l},
    }
    text: str = yaml.safe_dump({key: one for key, one in value.items() if one}, sort_keys=False)
    return text.strip()


def _facts(source: Source) -> list[tuple[str, str]]:
    return [
        ("Images", f"{source.rows:,}"),
        ("Clusters", f"{source.K:,}"),
        ("Labels per image", str(source.l)),
        ("From the lists and folders", ", ".join(map(code, source.lists))),
        *encoder_facts(without_places(source.model)),
    ]

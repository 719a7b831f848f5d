"""An export of a trained encoder."""

from __future__ import annotations

import argparse
import json

import mlcd.stages.export
from mlcd.config import parse_section


def export(
    train, output, *formats: str, centroids=None, labels=None, summary=None, lists=(), **keys
) -> None:
    section = parse_section("export", json.dumps({"formats": list(formats), **keys}), {})
    arguments = argparse.Namespace(
        encoder=str(train), output=str(output), centroids=centroids, labels=labels,
        summary=summary, lists=list(lists),
    )  # fmt: skip
    mlcd.stages.export.run(arguments, section)

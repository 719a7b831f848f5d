"""The paper's figures: published.yaml."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml


@functools.cache
def runs() -> dict[str, dict[str, Any]]:
    """Return name → run: title, config (key → value) and figures."""
    text = Path(__file__).with_name("published.yaml").read_text(encoding="utf-8")
    entries: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return entries

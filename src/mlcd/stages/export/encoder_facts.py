"""What cards say of the encoder whose embeddings were clustered: of weights, and of labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlcd.utils.templates import code


def encoder_facts(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of a card's table; `model` is what the centers say of their encoder."""
    name = " ".join(code(model[key]) for key in ("name", "pretrained") if model.get(key))
    facts = [("Embeddings that were clustered", name or "of an unknown encoder")]
    if model.get("weights_sha256"):
        facts.append(("That encoder's weights", f"SHA-256 {code(model['weights_sha256'])}"))
    return facts

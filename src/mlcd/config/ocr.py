"""Section `ocr`: words that are read in images, as labels of a second head of the training."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mlcd.config.base import Section, as_json


class Ocr(Section):
    """Read text in images, and give each the words in it as labels of a second head (optional)."""

    enabled: bool = Field(
        False,
        description="Read the text of all images (of a curated run those kept) and make labels of "
        "its words, for train.ocr_weight. Needs the extra `ocr`: pip install 'mlcd[ocr]'.",
    )
    side: int = Field(
        736,
        ge=32,
        le=2048,
        description="Pixels of an image's shorter side as the detector of text sees it: smaller "
        "images are enlarged to it. 736 is RapidOCR's own; 224 takes a third of the time and finds "
        "large text only.",
    )
    max_pixels: int = Field(
        50_000_000,
        gt=0,
        description="Images with more pixels than this in their header are not read, and count as "
        "failed.",
    )
    min_confidence: float = Field(
        0.7,
        ge=0,
        le=1,
        description="Least confidence of a line of text whose words count. RICE: more than 0.7.",
    )
    min_length: int = Field(2, gt=0, description="Characters of a word at least.")
    min_count: int = Field(5, gt=0, description="Images that a word must be in to be a class.")
    most_words: int = Field(
        100_000,
        gt=0,
        lt=2**31,
        description="Words that are classes at most: those in the most images.",
    )
    top: int = Field(
        10,
        gt=0,
        description="Words of an image that are its positives at most: those read with the most "
        "confidence. RICE: 10.",
    )
    max_failed: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Largest share, 0 to 1, of a chunk's images that may fail to be read; above it "
        "the stage stops, because something else is wrong.",
    )

    def sealed(self) -> dict[str, Any] | None:
        """As :meth:`Section.sealed`: none where no text is read, as in releases that lack it."""
        return super().sealed() if self.enabled else None

    def for_text(self) -> str:
        """Return the keys that decide what text is read, as one line of JSON."""
        return as_json(self.model_dump(mode="json", include={"side", "max_pixels"}))

    def for_vocabulary(self) -> str:
        """Return the keys that decide which words are classes, as one line of JSON."""
        keys = {"min_confidence", "min_length", "min_count", "most_words"}
        return as_json(self.model_dump(mode="json", include=keys))

    def for_labels(self) -> str:
        """Return the keys that decide the words of an image, as one line of JSON."""
        keys = {"min_confidence", "min_length", "top"}
        return as_json(self.model_dump(mode="json", include=keys))

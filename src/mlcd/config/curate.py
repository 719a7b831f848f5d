"""Section `curate`: images that are left out before anything is clustered."""

from __future__ import annotations

import math
import re
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from mlcd.config.base import MOST_SEED, Section, as_json
from mlcd.config.cluster import Cluster

#: Coarse clusters at most, where their number follows from the rows.
_MOST_CLUSTERS = 65_536
_CONDITION = re.compile(
    r"\s*(?:`(?P<quoted>[^`]+)`|(?P<plain>[^\s<>=!`'\"]+))"
    r"\s*(?P<operator><=|>=|!=|==|=|<|>)\s*(?P<value>.*?)\s*"
)
_TEXT = re.compile(r"'(?P<single>[^']*)'|\"(?P<double>[^\"]*)\"|(?P<word>[^\s'\"<>=!]+)")


class Condition(NamedTuple):
    """`column` compared by `operator` (<, <=, >, >=, =, !=) with `value`, a number or a text."""

    column: str
    operator: str
    value: float | str

    def __str__(self) -> str:
        """Return the condition as it may be written."""
        column = self.column if re.fullmatch(r"[\w.-]+", self.column) else f"`{self.column}`"
        if isinstance(self.value, float):
            return f"{column} {self.operator} {self.value:.15g}"
        mark = '"' if "'" in self.value else "'"
        return f"{column} {self.operator} {mark}{self.value}{mark}"

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read `COLUMN OPERATOR VALUE`. Raises ValueError with what is wrong.

        A name with blanks stands in backticks, a text with blanks in quotes. Nothing is evaluated.
        """
        found = _CONDITION.fullmatch(text)
        if found is None:
            raise ValueError(
                f"{text!r} is no condition; write COLUMN OPERATOR VALUE, such as 'aesthetic >= 5'"
            )
        column = found["quoted"] or found["plain"]
        operator = "=" if found["operator"] == "==" else found["operator"]
        word = _TEXT.fullmatch(found["value"])
        if word is None:
            raise ValueError(f"{text!r}: expected a number, a word, or a text in quotes as value")
        if word["word"] is not None:
            try:
                number = float(word["word"])
            except ValueError:
                number = math.nan
            if math.isfinite(number):
                return cls(column, operator, number)
        if operator not in ("=", "!="):
            raise ValueError(f"{text!r}: {operator} compares numbers; give one, or use = or !=")
        value = next(group for group in word.groups() if group is not None)
        return cls(column, operator, value)


class Curate(Section):
    """Leave out near-duplicates, images with unwanted values in columns, and what overfull
    clusters have too much (optional).
    """

    enabled: bool = Field(
        False,
        description="Curate between embed and cluster: cluster, label, train and text then see the "
        "kept images only. Nothing is removed from the disk.",
    )
    duplicate_similarity: float | None = Field(
        0.95,
        gt=0,
        lt=1,
        description="Two images whose embeddings have at least this cosine similarity are "
        "near-duplicates. Of all that hang together by such pairs one is kept: that with the most "
        "pixels, then the first. null keeps them all. docs/how-to/curate.md has measurements.",
    )
    where: list[str] = Field(
        [],
        description="Conditions that all must hold, COLUMN OPERATOR VALUE, with < <= > >= for "
        "numbers, = and != for these and texts: ['aesthetic >= 5', 'punsafe < 0.1', \"license != "
        "'none'\"]. An image without a value is left out.",
    )
    columns: list[str] | None = Field(
        None,
        min_length=1,
        description="Tables that hold the columns of `where`: parquet, csv or tsv files, or "
        "patterns, joined by `key`. null: the lists of `metadata` hold them.",
    )
    key: str = Field(
        "url",
        min_length=1,
        description="Column of the tables of `columns` that says which image a row is of: its URL, "
        "path, SHA-256, or key in a webdataset tar, as embed.key.",
    )
    cluster_cap: int | None = Field(
        None,
        gt=0,
        description="Images that are kept of a coarse cluster at most; null keeps all.",
    )
    balance: Literal["none", "sqrt", "mean"] = Field(
        "none",
        description="What is kept of a coarse cluster with n images, where m is the mean: all "
        "(none), the root of n · m where n is over m (sqrt), or m at most (mean).",
    )
    clusters: int = Field(
        0,
        ge=0,
        description="Coarse clusters, of a small k-means of all embeddings; 0 takes the square "
        f"root of the rows of `metadata`, at most {_MOST_CLUSTERS}. Duplicates are looked for "
        "within them.",
    )
    cluster_iterations: int = Field(8, gt=0, description="Iterations of the small k-means at most.")
    probes: int = Field(
        3,
        gt=0,
        description="An image is compared to all images of its so many nearest coarse clusters. "
        "More find more of the pairs that lie across a border, and take longer.",
    )
    seed: int = Field(
        0,
        ge=0,
        le=MOST_SEED,
        description="Seed of the small k-means, and of the choice of what balance and cap keep.",
    )

    @field_validator("where")
    @classmethod
    def _where_is_read(cls, value: list[str]) -> list[str]:
        for text in value:
            Condition.parse(text)
        return value

    @model_validator(mode="after")
    def _columns_are_asked_for(self) -> Curate:
        if self.columns is not None and not self.where:
            raise ValueError("columns: no condition asks for them; give curate.where")
        return self

    def sealed(self) -> dict[str, Any] | None:
        """As :meth:`Section.sealed`: none where nothing is curated.

        So that a run without it is sealed as by releases that lack it.
        """
        return super().sealed() if self.enabled else None

    def conditions(self) -> list[Condition]:
        """Return `where`, read."""
        return [Condition.parse(text) for text in self.where]

    def for_clusters(self, rows: int) -> str:
        """Return the section cluster of the small k-means over at most `rows` rows."""
        number = self.clusters or max(1, min(math.isqrt(rows), _MOST_CLUSTERS))
        small = Cluster(k=number, iterations=self.cluster_iterations, seed=self.seed)
        return small.for_centroids()

    def for_facts(self) -> str:
        """Return the keys that decide what is known of each image, as one line of JSON.

        What the tables of `columns` hold decides, not where they lie.
        """
        keys = {"probes", "where"} | ({"key"} if self.columns else set())
        return as_json(self.model_dump(mode="json", include=keys))

    def for_choice(self) -> str:
        """Return the keys that decide which images are kept, as one line of JSON."""
        keys = {"duplicate_similarity", "cluster_cap", "balance", "seed", "where"}
        return as_json(self.model_dump(mode="json", include=keys))

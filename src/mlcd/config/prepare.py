"""Section `prepare`: cut URL lists into chunks."""

from __future__ import annotations

from pydantic import Field

from mlcd.config.base import Section


class Prepare(Section):
    """Cut every URL list into chunks of a fixed number of rows; a chunk is the work of one job."""

    chunk_rows: int = Field(
        600,
        gt=0,
        description="Rows a chunk. One chunk is one job of download, embed and label. At scale "
        "choose 1 to 2 million, so that LAION-400M makes some 300 chunks, not 40,000.",
    )
    url_column: str = Field(
        "url",
        min_length=1,
        description="Column that holds the URL of the picture; not looked at in txt lists.",
    )
    caption_column: str | None = Field(
        "caption",
        min_length=1,
        description="Column that holds the caption; null if the list has none.",
    )
    hash_column: str | None = Field(
        "sha256",
        min_length=1,
        description="Column that holds the SHA-256 of the picture's bytes, in hex; a picture that "
        "differs from it is refused by download. null if the list has none, as LAION's.",
    )

"""Section `prepare`: cut URL lists into chunks."""

from __future__ import annotations

from pydantic import Field

from mlcd.config.base import Section


class Prepare(Section):
    """Cut every URL list into chunks of a fixed number of rows; a chunk is the work of one job."""

    chunk_rows: int = Field(
        620,
        gt=0,
        description="Rows a chunk. One chunk is one job of download, embed and label. At scale "
        "choose 1 to 2 million, so that LAION-400M makes some 300 chunks, not 40,000.",
    )
    url_column: str = Field("url", description="Column that holds the URL of the picture.")
    caption_column: str | None = Field(
        "caption", description="Column that holds the caption; null if the list has none."
    )
    hash_column: str | None = Field(
        None,
        description="Column that holds the SHA-256 (hex) of the picture's bytes; rows whose "
        "download differs are refused. null: not checked.",
    )

"""Section `download`: fetch the pictures of a chunk with img2dataset."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlcd.config.base import Section


class Download(Section):
    """Fetch pictures with img2dataset, retry what failed in passing, prove every tar whole."""

    rows_per_tar: int = Field(
        256, gt=0, description="Rows a tar (webdataset shard). 10,000 is usual at scale."
    )
    image_size: int | None = Field(
        None,
        gt=0,
        description="Side in pixels that pictures are resized to and stored as JPEG; null keeps "
        "the bytes as served.",
    )
    resize_mode: Literal["border", "keep_ratio", "center_crop"] = Field(
        "keep_ratio",
        description="How pictures are resized when image_size is set: keep_ratio makes the shorter "
        "side image_size, center_crop also cuts the longer one, border pads with white.",
    )
    encode_quality: int = Field(
        95, ge=1, le=100, description="JPEG quality of resized pictures, 1 to 100."
    )
    min_image_size: int = Field(
        0,
        ge=0,
        description="Served pictures with a shorter side under this many pixels are refused.",
    )
    max_pixels: int = Field(
        50_000_000,
        gt=0,
        description="Pictures with more pixels in their header are refused before decoding, since "
        "a file of a few bytes can claim gigabytes.",
    )
    max_bytes: int = Field(
        50_000_000,
        gt=0,
        description="Responses of more bytes are cut off and refused; every transfer is held in "
        "memory, processes × threads of them at a time.",
    )
    timeout: float = Field(
        10, gt=0, description="Seconds that one socket operation may wait before it fails."
    )
    transfer_timeout: float = Field(
        60,
        gt=0,
        description="Seconds that one response may take as a whole. A server that drips bytes "
        "never meets timeout and would hold the chunk until its deadline.",
    )
    deadline: float = Field(
        3600,
        gt=0,
        description="Seconds that a chunk's passes may take together. Transfers stop a tenth (at "
        "most 30 s) earlier, so that what has arrived is kept; then all processes are ended. "
        "What is not there by then counts as failed. A rerun has its own deadline.",
    )
    passes: int = Field(
        3,
        ge=1,
        description="Passes over rows that failed for a passing reason (time-out, 5xx, reset). "
        "Permanent failures (404, not an image, too small, opted out) are not tried again.",
    )
    backoff: float = Field(
        2, ge=0, description="Seconds before the second pass; doubled before each further pass."
    )
    min_success: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Least share of a chunk's rows that must arrive, else the job fails and shows "
        "the table of reasons. LAION lists of 2021 now give 0.5 to 0.7.",
    )
    user_agent_token: str = Field(
        "mlcd",
        pattern=r"^[A-Za-z0-9_-]+$",
        description="Agent name that servers see and that opt-out headers may address.",
    )
    respect_opt_out: bool = Field(
        True,
        description="Honour X-Robots-Tag headers noai, noimageai, noindex and noimageindex.",
    )

    def fetched(self) -> dict[str, object]:
        """Return the keys that decide which pictures are kept and what their bytes are.

        Pictures fetched under other values of the rest (patience, passes, rows a tar) are as good.
        """
        keys = {
            "image_size", "resize_mode", "encode_quality", "min_image_size", "max_pixels",
            "max_bytes", "user_agent_token", "respect_opt_out",
        }  # fmt: skip
        return self.model_dump(mode="json", include=keys)

"""Section `download`: fetch the images of a chunk with img2dataset."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field

from mlcd.config.base import MOST_SIDE, Section


class Download(Section):
    """Fetch images with img2dataset, retry what failed for a transient reason, prove every tar
    whole.
    """

    rows_per_tar: int = Field(
        256, gt=0, description="Rows per tar (webdataset shard). 10,000 is usual at scale."
    )
    image_size: int | None = Field(
        None,
        gt=0,
        le=MOST_SIDE,
        description="Side in pixels that images are resized to (bicubic) and stored as JPEG; null "
        "keeps the bytes as served.",
    )
    resize_mode: Literal["border", "keep_ratio", "center_crop"] = Field(
        "keep_ratio",
        description="How images are resized when image_size is set: keep_ratio makes the shorter "
        "side image_size (images over 32 times as long as wide are then refused: too_thin), "
        "center_crop also cuts the longer one, border makes the longer side image_size and pads "
        "with white.",
    )
    encode_quality: int = Field(
        95, ge=1, le=100, description="JPEG quality of resized images, 1 to 100."
    )
    min_image_size: int = Field(
        0,
        ge=0,
        le=MOST_SIDE,
        description="Served images with a shorter side under this many pixels are refused.",
    )
    max_pixels: int = Field(
        50_000_000,
        gt=0,
        description="Images with more pixels in their header are refused before decoding, since "
        "a file of a few bytes can claim gigabytes.",
    )
    max_bytes: int = Field(
        50_000_000,
        gt=0,
        description="Responses of more bytes are cut off and refused; every transfer is held in "
        "memory, processes × threads of them at a time.",
    )
    timeout: float = Field(
        10,
        gt=0,
        le=86_400,
        description="Seconds that one socket operation may wait before it fails.",
    )
    transfer_timeout: float = Field(
        60,
        gt=0,
        le=86_400,
        description="Seconds that one response may take as a whole. A server that drips bytes "
        "never meets timeout and would hold the chunk until its deadline.",
    )
    deadline: float = Field(
        3600,
        gt=0,
        le=10_000_000,
        description="Seconds that a chunk's passes may take together. Transfers stop a tenth (at "
        "most 30 s) earlier, so that what has arrived is kept; then all processes are ended. "
        "What is not there by then counts as failed. A rerun has its own deadline.",
    )
    passes: int = Field(
        3,
        ge=1,
        le=100,
        description="Passes over rows that failed for a transient reason (time-out, 5xx, reset). "
        "Permanent failures (404, not an image, too small, opted out) are not tried again.",
    )
    backoff: float = Field(
        2,
        ge=0,
        le=86_400,
        description="Seconds before the second pass; doubled before each further pass.",
    )
    requests_per_host: int = Field(
        0,
        ge=0,
        le=1000,
        description="Requests to one host at a time, over all processes of a chunk; 0: as many as "
        "there are connections. Chunks that are fetched side by side have each its own. 4 to 8 "
        "keep the owners of small sites friendly.",
    )
    retry_after: float = Field(
        30,
        ge=0,
        le=86_400,
        description="Longest pause in seconds that a server may ask for (429 or 503 with "
        "Retry-After): its host gets no request meanwhile, then the row is tried again. Rows of "
        "hosts that ask for more count as throttled, and are not asked before.",
    )
    dns_cache: float = Field(
        300,
        ge=0,
        le=86_400,
        description="Seconds that each process remembers the addresses of a name, or that it has "
        "none; 0 asks for each request.",
    )
    keep_alive: float = Field(
        10,
        ge=0,
        le=3600,
        description="Seconds that a connection stays open for the next request to the same host; "
        "0 closes each.",
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
    private_addresses: Literal["allow", "listed", "refuse"] = Field(
        "listed",
        description="Whether addresses of private networks and of this machine are asked (those "
        "not of the public internet, by what a name resolves to): listed where the list names "
        "them or one of them redirects there, refuse never, allow also where a public host "
        "redirects there.",
    )
    respect_opt_out: bool = Field(
        True,
        description="Honor X-Robots-Tag headers noai, noimageai, noindex and noimageindex.",
    )

    def fetched(self) -> dict[str, object]:
        """Return the keys that decide which images are kept and what their bytes are.

        Images fetched under other values of the rest (retry policy, rows per tar) are as good.
        """
        keys = {
            "image_size", "resize_mode", "encode_quality", "min_image_size", "max_pixels",
            "max_bytes", "user_agent_token", "respect_opt_out", "private_addresses",
        }  # fmt: skip
        return self.model_dump(mode="json", include=keys)

    def for_images(self) -> str:
        """Return the keys that decide images and tars, as one line of JSON.

        Another deadline or number of passes must not fetch everything again.
        """
        return json.dumps(self.fetched() | {"rows_per_tar": self.rows_per_tar})

    def retry_policy(self) -> dict[str, float]:
        """Return the keys that decide how long and how often is tried, and what is too little."""
        keys = (
            "timeout", "transfer_timeout", "deadline", "passes", "backoff", "min_success",
            "requests_per_host", "retry_after", "dns_cache", "keep_alive",
        )  # fmt: skip
        return {key: getattr(self, key) for key in keys}

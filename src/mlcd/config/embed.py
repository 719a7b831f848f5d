"""Section `embed`: features of the frozen, off-the-shelf encoder that k-means clusters."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mlcd.config.base import MOST_SIDE, Section, as_json


class Embed(Section):
    """Embed every image with a frozen encoder; the paper takes CLIP ViT-L/14's image tower."""

    embeddings: list[str] | None = Field(
        None,
        min_length=1,
        description="Your own embeddings, which are taken in place of the encoder's: .npy, "
        ".parquet or HDF5 files, patterns, or a folder as clip-retrieval writes it; null for none. "
        "Rows are [n, d] of float16, float32 or float64, in HDF5 the dataset `embedding`. They are "
        "normalized as ours are.",
    )
    key: str | None = Field(
        None,
        min_length=1,
        description="Column (of the parquet, or of the one beside an .npy) or dataset (HDF5) by "
        "which own embeddings belong to images. It holds URLs, paths, keys of webdataset tars or "
        "SHA-256. null: by order, a row for each row of `metadata`.",
    )
    model: str = Field(
        "efficientnet_lite0",
        description="efficientnet_lite0 (packaged, stands in for CLIP on a laptop) or any "
        "open_clip model name. The paper: ViT-L-14.",
    )
    pretrained: str | None = Field(
        None,
        description="open_clip's pretrained tag or a local checkpoint; null for the packaged "
        "model, or for random weights (tests only). The paper: openai. If the machine has no "
        "network, download the weights elsewhere and give the file's path; a tag brings its "
        "activation along, a file does not: OpenAI's weights need the model ViT-L-14-quickgelu.",
    )
    features: Literal["image", "image_text_mean"] = Field(
        "image",
        description="image (MLCD), or image_text_mean: the mean of the normalized image and "
        "caption features, normalized again (UNICOM); without a caption, the image feature.",
    )
    image_size: int | None = Field(
        None,
        gt=0,
        le=MOST_SIDE,
        description="Side in pixels that the encoder sees; null takes the model's own (224 for "
        "most CLIPs; efficientnet_lite0 here 160, which suits images stored at about 128).",
    )
    max_pixels: int = Field(
        50_000_000,
        gt=0,
        description="Images with more pixels than this in their header are counted as failed and "
        "not decoded, since a file of a few bytes can claim gigabytes.",
    )
    batch_size: int = Field(
        64,
        gt=0,
        description="Images per forward pass. It moves the last bits of features, so it is fixed "
        "here; a batch never crosses a tar.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32",
        description="Precision of the forward pass; embeddings are stored in float16 either way. "
        "bf16 is the right one on a GPU and 15 times slower on most CPUs.",
    )
    max_failed: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Largest share, 0 to 1, of downloaded images that may fail to decode; above "
        "it the stage stops and shows the reasons, because something else is wrong.",
    )

    def for_features(self) -> str:
        """Return the keys that decide features, as one line of JSON: `max_failed` only refuses.

        Of own embeddings only the key: what their files hold decides, not where they lie.
        """
        if self.embeddings is not None:
            return as_json(self.model_dump(mode="json", include={"key"}))
        return self.for_encoder()

    def for_encoder(self) -> str:
        """Return the keys of the frozen encoder, as one line of JSON."""
        idle = {"max_failed", "embeddings", "key"}
        return as_json(self.model_dump(mode="json", exclude=idle))

    def for_trained_encoder(self) -> str:
        """Return the keys that count where the trained encoder embeds, as one line of JSON.

        It embeds images alone, whatever the frozen one does; its weights and its input size come
        with it.
        """
        values = self.model_dump(mode="json", include={"batch_size", "precision", "max_pixels"})
        return as_json({**values, "features": "image"})

    @model_validator(mode="after")
    def _key_has_rows(self) -> Embed:
        if self.key is not None and self.embeddings is None:
            raise ValueError("key: of own embeddings, and none are given; give embed.embeddings")
        return self

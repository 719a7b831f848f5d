"""Section `embed`: features of the frozen, off-the-shelf encoder that k-means clusters."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlcd.config.base import Section


class Embed(Section):
    """Embed every picture with a frozen encoder; the paper takes CLIP ViT-L/14's image tower."""

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
        description="image (MLCD), or image_text_mean: the mean of the normalised image and "
        "caption features, normalised again (UNICOM); without a caption, the image feature.",
    )
    image_size: int | None = Field(
        None,
        gt=0,
        description="Side in pixels that the encoder sees; null takes the model's own (224 for "
        "most CLIPs; efficientnet_lite0 here 160, which suits pictures stored at about 128).",
    )
    max_pixels: int = Field(
        50_000_000,
        gt=0,
        description="Pictures with more pixels than this in their header are counted as failed and "
        "not decoded, since a file of a few bytes can claim gigabytes.",
    )
    batch_size: int = Field(
        64,
        gt=0,
        description="Pictures a forward pass. It moves the last bits of features, so it is fixed "
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
        description="Largest share, 0 to 1, of downloaded pictures that may fail to decode; above "
        "it the stage stops and shows the reasons, because something else is wrong.",
    )

"""Footprints of the presets' encoders, as mlcd.models.footprint measured them (bfloat16)."""

from __future__ import annotations

from mlcd.models.footprint import Footprint

VIT_L, RN50 = "open_clip:ViT-L-14", "resnet50"
#: Model, side and activation checkpointing → footprint.
FOOTPRINTS = {
    (VIT_L, 224, False): Footprint(303_966_208, 0, 612_301_650, 232_779_957, 162_025_537_536),
    (VIT_L, 224, True): Footprint(303_966_208, 0, 599_606_711, 19_779_226, 162_025_537_536),
    (VIT_L, 336, False): Footprint(304_293_888, 0, 609_294_016, 522_980_826, 381_919_789_056),
    (VIT_L, 336, True): Footprint(304_293_888, 0, 597_235_712, 44_577_800, 381_919_789_056),
    (RN50, 224, False): Footprint(24_556_608, 212_904, 55_985_142, 44_478_245, 8_176_893_952),
    (RN50, 224, True): Footprint(24_556_608, 212_904, 48_694_766, 17_305_381, 8_176_893_952),
}


def recorded(
    model: str,
    dim: int,
    side: int,
    drop_path: float,
    bf16: bool,
    checkpointing: bool,
    frozen: int,
    mosaic: None = None,
    regions: int = 0,
) -> Footprint:
    """Stand in for mlcd.stages.train.fit.footprint, which takes seconds."""
    assert bf16 and not (frozen or mosaic or regions)
    return FOOTPRINTS[model, side, checkpointing]

"""Section regions: what decides, what goes with what, and runs without it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from mlcd.config import Config, Regions

COLUMN = {"source": "column", "column": "boxes"}


def test_only_keys_that_are_read_decide() -> None:
    own = Regions(**COLUMN).for_regions()
    same = {"max_failed": 0.5, "segment_side": 64, "segment_scales": 50, "segment_pixels": 9}
    assert Regions(**COLUMN, **same).for_regions() == own
    # The key is of tables; where these lie does not count, that there are some does.
    assert Regions(**COLUMN, key="sha256").for_regions() == own
    assert Regions(**COLUMN, tables="a.csv").for_regions() != own
    assert (
        Regions(**COLUMN, tables=["a.csv"]).for_regions()
        == Regions(**COLUMN, tables="b.csv").for_regions()
    )
    for key, value in {"most": 3, "least_side": 9, "max_overlap": 0.9, "unit": "shares"}.items():
        assert Regions(**{**COLUMN, key: value}).for_regions() != own
    segments = Regions(source="felzenszwalb").for_regions()
    assert Regions(source="felzenszwalb", unit="shares").for_regions() == segments
    assert Regions(source="felzenszwalb", segment_side=64).for_regions() != segments


def test_a_run_without_regions_has_the_config_of_releases_without_them() -> None:
    assert "\nregions:" not in Config().to_yaml()
    assert "regions" in Config().idle_sections()
    on = Config.model_validate({"regions": COLUMN})
    assert "\nregions:" in on.to_yaml() and on.idle_sections() == {"curate", "ocr"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"regions": {"source": "column"}}, "column: source column needs its name"),
        ({"regions": {"column": "boxes"}}, "column: nothing reads it"),
        ({"regions": {"source": "felzenszwalb", "tables": "a.csv"}}, "tables: nothing reads it"),
        ({"regions": {"segment_scales": [100, -1]}}, "expected positive numbers, got -1"),
        (
            {
                "regions": COLUMN,
                "embed": {"embeddings": "e.npy"},
                "evaluate": {"models": ["pixels"]},
            },
            "regions.source: the frozen encoder embeds regions",
        ),
        ({"regions": COLUMN, "embed": {"features": "image_text_mean"}}, "embed.features: a region"),
        ({"regions": COLUMN, "download": {"image_size": 64}}, "regions.unit: pixels are of images"),
        (
            {
                "regions": {**COLUMN, "unit": "shares"},
                "download": {"image_size": 64, "resize_mode": "center_crop"},
            },
            "download.resize_mode: center_crop moves what boxes are around",
        ),
        ({"train": {"regions": "boxes"}}, "train.regions: boxes are those of the stage regions"),
    ],
)
def test_what_does_not_go_together_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(values)


def test_what_goes_together_is_taken() -> None:
    Config.model_validate(
        {
            "regions": {**COLUMN, "unit": "shares"},
            "download": {"image_size": 64},
            "curate": {"enabled": True},
            "train": {"regions": "boxes"},
        }
    )

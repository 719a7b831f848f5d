"""docs/pipeline.svg is what its script draws."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from xml.etree import ElementTree

from helpers.paths import ROOT
from mlcd.config import SECTIONS


def test_the_image_of_the_pipeline_is_drawn_by_its_script():
    docs = ROOT / "docs"
    spec = importlib.util.spec_from_file_location("draw_pipeline", docs / "draw_pipeline.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (docs / "pipeline.svg").read_text(encoding="utf-8") == script.draw()
    # What only runs that ask for it have is left out.
    drawn = set(SECTIONS) - {"ablate", "curate", "ocr", "regions", "text"}
    assert {stage[0] for stage in script.STAGES} == drawn
    image = ElementTree.fromstring(script.draw())
    words = {element.text for element in image.iter("{http://www.w3.org/2000/svg}text")}
    assert drawn <= words

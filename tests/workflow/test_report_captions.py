"""Captions of Snakemake's report."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from helpers.paths import ROOT
from mlcd.config import Config


def caption(name: str, config: dict) -> str:
    """A caption as Snakemake renders it."""
    docutils, jinja2 = pytest.importorskip("docutils.core"), pytest.importorskip("jinja2")
    source = (ROOT / "workflow" / "report" / f"{name}.rst").read_text()
    text = jinja2.Template(source, undefined=jinja2.StrictUndefined).render(
        snakemake=SimpleNamespace(config=config), categories=[]
    )
    settings = {"halt_level": 2, "report_level": 2}
    parts = docutils.publish_parts(text, writer_name="html", settings_overrides=settings)
    return parts["body"]


def test_captions_name_the_models_and_lists_of_the_config():
    values = Config(metadata=["lists/*.parquet", "more.csv"]).model_dump(mode="json")
    values["evaluate"]["models"] = ["random", "trained"]
    about = caption("results", values)
    assert ">random<" in about and ">trained<" in about and ">frozen<" not in about
    assert "ln(256)" in caption("text", values)
    about = caption("workflow", values)
    assert ">lists/*.parquet<" in about and ">more.csv<" in about


def test_the_first_page_names_the_sealed_run():
    values = Config(metadata=["more.csv"]).model_dump(mode="json")
    assert "identity" not in caption("workflow", values)
    assert f">{'ab' * 32}<" in caption("workflow", {**values, "run_identity": "ab" * 32})
    assert "audit/lock.json" in caption("audit", values)

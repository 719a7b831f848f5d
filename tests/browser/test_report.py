"""Snakemake's HTML report, built by the real rule and captions, seen in a headless Chromium.

MLCD_REPORT=results/report.html pytest tests/browser/test_report.py    another report as well
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from helpers import browser
from helpers.paths import ROOT
from helpers.report_stores import N, Stores
from mlcd.stages.report import PARTS

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(bool(browser.missing()), reason=browser.missing()),
]

#: The rule of the report alone: its inputs lie there already, and no other rule makes them.
SNAKEFILE = f"""
configfile: "config.yaml"
report: "{ROOT}/workflow/report/workflow.rst"
include: "{ROOT}/rules/common.smk"
include: "{ROOT}/rules/ablate_inputs.smk"
include: "{ROOT}/rules/report.smk"
rule all:
    default_target: True
    input: REPORT_FILES
"""


def snakemake(folder: Path, *words: str) -> str:
    """Run snakemake in `folder`; return what it said."""
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with stores, lists of the same chunks, and the report's pages drawn by Snakemake."""
    folder = tmp_path_factory.mktemp("report")
    stores = Stores(folder / "results")
    # Labels are of embeddings that curate has copied.
    shutil.copytree(stores.embeddings[0].parent, folder / "results" / "curate" / "embeddings")
    for name, rows in (("first", 2 * N), ("second", N)):
        urls = [f"http://127.0.0.1/{i}.jpg" for i in range(rows)]
        pd.DataFrame({"url": urls, "caption": ""}).to_parquet(folder / f"{name}.parquet")
    (folder / "few.tar").write_bytes(b"")
    config = {
        "metadata": ["first.parquet", "second.parquet"],
        "prepare": {"chunk_rows": N, "hash_column": None},
        "evaluate": {"datasets": [{"name": "few", "path": "few.tar", "label_field": "top"}]},
        "ablate": {"grids": [{}]},
        # The lists have 3 * N rows.
        "cluster": {"k": 8},
        "train": {"batch_size": 8},
        "text": {"enabled": True, "batch_size": 8},
        "curate": {"enabled": True},
        "report": {
            "montage_clusters": 4,
            "montage_images": 5,
            "label_examples": 3,
            "figures": [f"results-figures/{path.name}" for path in stores.figures],
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "Snakefile").write_text(SNAKEFILE)
    # What stages that are not drawn from here would have left.
    (folder / "results" / "train" / "encoder.safetensors").write_bytes(b"weights")
    (folder / "results" / "text" / "text.safetensors").write_bytes(b"weights")
    (folder / "results" / "export" / "timm").mkdir(parents=True)
    (folder / "results" / "export" / "timm" / "check.json").write_text("{}")
    snakemake(folder, "--cores", "2")
    snakemake(folder, "--report", "report.html")
    return folder


def test_every_figure_of_the_report_shows(folder):
    figures, problems = browser.check_report(folder / "report.html", folder / "shots")
    assert problems == []
    # The overview is the first page, in the place of Snakemake's description.
    assert {Path(figure.path).stem for figure in figures} == set(PARTS) - {"overview"}
    images = {Path(figure.path).stem: figure.images for figure in figures}
    assert images["montage"] >= 10 and images["examples"] >= 10 and images["figures"] == 2
    assert all(
        images[part] == 1
        for part in ("download", "cluster", "label", "train", "text", "results", "ablate")
    )
    assert all(figure.words > 20 for figure in figures)
    assert (folder / "report.html").stat().st_size < 5_000_000
    assert len(list((folder / "shots").glob("*.png"))) == len(PARTS)


_COLORS = """
const shade = color => color.match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0);
const words = document.querySelector('h1'), axis = document.querySelector('.chart path');
return [document.body, axis || document.body, words].map((one, index) => {
  const style = getComputedStyle(one);
  return shade(index == 2 ? style.color : index == 1 && axis ? style.fill : style.backgroundColor);
});
"""
#: What covers a reader's focus: whether the note of the first mark shows before and after.
_FOCUS = """
const mark = document.querySelector('.mark[tabindex]');
const tip = () => getComputedStyle(mark.querySelector('.tip')).visibility;
const before = tip();
mark.focus();
return [before, tip(), mark.getAttribute('aria-label').length > 0];
"""


def test_pages_fit_narrow_windows_and_dark_rooms(folder):
    with browser.Browser() as window:
        for part in PARTS:
            for scheme in ("light", "dark"):
                window.look(500 if scheme == "dark" else 1280, 900, dark=scheme == "dark")
                window.open(folder / "results" / "report" / f"{part}.html")
                # A wide table or chart scrolls by itself, and the page does not.
                wide = window.run("return document.documentElement.scrollWidth - innerWidth")
                assert wide <= 0, (part, scheme)
                ground, chart, words = window.run(_COLORS)
                assert (ground < 150 and chart < 150) == (scheme == "dark"), (part, scheme)
                assert (words > 600) == (scheme == "dark"), (part, scheme)
        window.open(folder / "results" / "report" / "results.html")
        assert window.run(_FOCUS) == ["hidden", "visible", True]
        assert (window.errors(), window.requests()) == ([], [])


def test_the_first_page_shows_the_run_in_the_viewer(folder):
    with browser.Browser() as window:
        window.open(folder / "report.html")
        top = "return document.querySelector('.mlcd h1')?.getBoundingClientRect().top"
        assert 0 < window.wait(top) < 200
        shown = window.run("return document.querySelector('.mlcd').innerText")
        assert "beats random weights and raw pixels" in shown and "frozen encoder" in shown
        boxes = "return document.querySelectorAll('.mlcd .wide a[data-page]').length"
        assert window.run(boxes) >= 6


def test_a_broken_report_is_noticed(folder):
    """The check can fail: a lost image, an empty page, a foreign address, a broken caption."""
    broken = folder / "broken"
    broken.mkdir()
    pages = {
        "lost": '<p>word</p><img src="data:image/png;base64,AAAA">',
        "empty": "<p></p>",
        "foreign": '<p>word</p><img src="http://example.org/pixel.png">',
        "huge": f"<p>word</p><!--{'x' * 1_600_000}-->",
        "good": "<p>word</p>",
    }
    rules = 'report: "about.rst"\n'
    (broken / "about.rst").write_text("About\n")
    for name, text in pages.items():
        (broken / f"{name}.in").write_text(f"<!doctype html><body>{text}</body>")
        caption = 'caption="about.rst", ' if name != "good" else ""
        rules += (
            f'rule {name}:\n    input: "{name}.in"\n    output: report("{name}.html", {caption}'
            f'category="{name}")\n    shell: "cp {{input}} {{output}}"\n'
        )
    wanted = ", ".join(f'"{name}.html"' for name in pages)
    rules += f"rule all:\n    default_target: True\n    input: {wanted}\n"
    (broken / "Snakefile").write_text(rules)
    snakemake(broken, "--cores", "1")
    snakemake(broken, "--report", "report.html")
    figures, problems = browser.check_report(broken / "report.html")
    assert len(figures) == len(pages)
    found = "\n".join(problems)
    assert "lost.html: 1 images do not show" in found
    assert "empty.html: the page is empty" in found
    assert "huge.html: the page is empty" in found
    assert "foreign.html: 1 images do not show" in found
    assert "asked the network for http://example.org/pixel.png" in found
    assert "good.html: has no caption" in found


@pytest.mark.skipif("MLCD_REPORT" not in os.environ, reason="MLCD_REPORT names no report")
def test_the_report_named_by_the_environment_shows():
    figures, problems = browser.check_report(Path(os.environ["MLCD_REPORT"]))
    assert problems == []
    # What a run does not do has no page; the overview is the first page.
    missing = set(PARTS) - {Path(figure.path).stem for figure in figures}
    assert missing <= {"ablate", "text", "curate", "figures", "overview"}

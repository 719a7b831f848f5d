"""The report's pages: right numbers, nothing unescaped, nothing fetched, equal bytes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import subprocess
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from builders import image_store
from PIL import Image
from report_stores import CHUNKS, K, L, N, Outline, Stores, cells, step

from mlcd.cli import main
from mlcd.config import SECTIONS, Config, Report
from mlcd.errors import UserError
from mlcd.files import read_json, write_json
from mlcd.progress import LOGGER
from mlcd.report import PARTS, curves, download, page, provenance, results, text, train

CHARTED = ("download", "cluster", "label", "train", "text", "results", "efficiency", "ablate")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return Stores(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("part", PARTS)
def test_every_page_is_whole_self_contained_and_the_same_again(stores, tmp_path, part):
    html = stores.draw(part, tmp_path / "a.html")
    outline = Outline(html)
    assert not outline.open
    assert all(address.startswith("data:image/") for address in outline.addresses)
    assert "script" not in outline.tags and "link" not in outline.tags and "@import" not in html
    assert outline.tags.count("h1") == 1
    assert ("img" in outline.tags) == (part != "provenance")
    assert stores.draw(part, tmp_path / "b.html") == html
    assert str(stores.folder) not in html


@pytest.mark.parametrize("part", CHARTED)
def test_charts_are_equal_bytes_without_a_date(stores, tmp_path, part):
    for suffix in ("svg", "png", "pdf"):
        outputs = [tmp_path / f"{name}.{suffix}" for name in "ab"]
        for output in outputs:
            stores.draw(part, output)
        first, second = (output.read_bytes() for output in outputs)
        assert first == second
        assert b"dc:date" not in first and b"CreationDate" not in first
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 1200 and picture.getextrema() != ((255, 255),) * 4


def test_a_users_matplotlibrc_changes_nothing(stores, tmp_path):
    import matplotlib

    plain = stores.draw("train", tmp_path / "a.svg")
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30}):
        assert stores.draw("train", tmp_path / "b.svg") == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_hostile_words_elsewhere_are_escaped(tmp_path):
    manifest = image_store(tmp_path / "images" / "a-00000", 3)
    values = read_json(manifest)
    values["counts"]["<b>odd</b> $x^$"] = 2
    values["rows"] = 5
    values["chunk"] = "<i>chunk</i>$_$"
    write_json(manifest, values)
    html = download.draw(Report(), [str(manifest)]).html()
    assert "<b>odd" not in html and "&lt;b&gt;odd" in html and "<i>chunk" not in html
    scores = tmp_path / "summary.csv"
    scores.write_text("model,dataset,metric,value,seed\n<u>m</u>,<s>d</s>,$\\frac,0.5,0\n")
    html = results.draw(Report(), str(scores)).html()
    assert "<u>" not in html and "<s>" not in html


def manifests(folder: Path, arrived: list[int], rows: int = 20) -> list[str]:
    """Write manifests without tars: the download page reads nothing else."""
    paths = []
    for index, success in enumerate(arrived):
        counts = {"success": success, "not_found": (rows - success) // 2}
        counts["timeout"] = rows - sum(counts.values())
        path = folder / f"c-{index:05d}" / "manifest.json"
        tars = [{"name": "00000.tar", "sha256": "", "bytes": 1000, "pictures": success}]
        write_json(path, {"chunk": path.parent.name, "rows": rows, "counts": counts, "tars": tars})
        paths.append(str(path))
    return paths


def test_download_totals_are_the_sums_over_chunks(tmp_path):
    drawing = download.draw(Report(), manifests(tmp_path, [20, 10, 6]))
    assert drawing.title == "36 of 60 pictures arrived (60.0%)"
    rows = cells(drawing.body)
    assert ["success", "36", "60.00%"] in rows
    assert ["not_found", "12", "20.00%"] in rows and ["timeout", "12", "20.00%"] in rows
    assert ["all", "60", "36", "60.00%", "3.0 kB"] in rows


def test_many_chunks_show_the_worst_and_all_in_the_totals(tmp_path):
    arrived = [20] * 100
    arrived[77], arrived[5] = 1, 3
    drawing = download.draw(Report(), manifests(tmp_path, arrived))
    rows = cells(drawing.body)
    chunks = [row[0] for row in rows if row[0].startswith("c-")]
    assert chunks[:2] == ["c-00077", "c-00005"] and len(chunks) == 40
    assert rows[-1][:3] == ["all", "2,000", "1,964"]
    assert len(drawing.html()) < 300_000


def test_a_foreign_manifest_is_refused(tmp_path):
    write_json(tmp_path / "manifest.json", {"rows": 3})
    with pytest.raises(UserError, match=r"manifest\.json: not a manifest"):
        download.draw(Report(), [str(tmp_path / "manifest.json")])


def test_a_page_over_the_limit_is_written_with_a_warning(tmp_path, caplog):
    drawing = page.Drawing("title", "lead", "x" * page.LIMIT)
    LOGGER.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING):
        page.write([str(tmp_path / "a.html")], drawing)
    LOGGER.removeHandler(caplog.handler)
    assert "browsers may show nothing" in caplog.text
    assert (tmp_path / "a.html").stat().st_size > page.LIMIT


def test_metrics_of_a_killed_and_resumed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 10, "loss": 9.0}, {"step": 20, "loss": 8.0}, {"step": 20, "loss": 7.5},
             {"step": 30, "loss": 7.0, "feature_cosine": 0.5}]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 40, "lo')
    values = curves.read_metrics(str(path), "train")
    assert values["step"].tolist() == [10, 20, 30]
    assert values["loss"].tolist() == [9.0, 7.5, 7.0]
    assert np.isnan(values["feature_cosine"][:2]).all() and values["feature_cosine"][2] == 0.5
    path.write_text('{"step": 10}\nnonsense\n{"step": 20}\n')
    with pytest.raises(UserError, match="line 2"):
        curves.read_metrics(str(path), "train")
    path.write_text("")
    with pytest.raises(UserError, match="holds no step"):
        curves.read_metrics(str(path), "train")


def test_training_says_what_happened_and_warns(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(step(i)) + "\n" for i in range(10, 410, 10)))
    drawing = train.draw(Report(), str(path))
    assert drawing.title == "Loss fell from 7.700 to 0.100 in 400 steps" and not drawing.warnings
    assert "100 pictures/s" in drawing.lead and "5.0%" in drawing.lead
    sick = [{**step(i), "feature_cosine": 0.97, "loss": float("nan") if i == 30 else 5.0}
            for i in range(10, 60, 10)]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in sick))
    drawing = train.draw(Report(), str(path))
    assert len(drawing.warnings) == 2
    assert "step 30" in drawing.warnings[0] and "collapse" in drawing.warnings[1]
    assert drawing.warnings[1] in Outline(drawing.html()).words


def test_the_text_tower_says_what_it_learned(stores):
    drawing = text.draw(Report(), str(stores.text_metrics))
    assert drawing.title == "Loss fell from 5.400 to 3.500 in 200 steps" and not drawing.warnings
    assert f"temperature from {1 / 15.3:.4f} to {1 / 34.3:.4f}; 50.0% of a step's" in drawing.lead
    assert "900 pairs/s" in drawing.lead and "1.0% of the time" in drawing.lead
    rows = {row[0]: row[1:] for row in cells(drawing.body)}
    assert rows["Learned temperature"] == [f"{1 / 15.3:.4g}", f"{1 / 34.3:.4g}"]
    with pytest.raises(UserError, match="run the stage text first"):
        text.draw(Report(), str(stores.folder / "none.jsonl"))


def test_nulls_are_gaps_and_a_field_of_nulls_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{**step(i), "negative_similarity": None, "grad_norm": None if i == 20 else 2.0}
             for i in range(10, 60, 10)]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawing = train.draw(Report(), str(path))
    rows = {row[0]: row[1:] for row in cells(drawing.body)}
    assert rows["Gradient norm: encoder"] == ["2", "2"]
    assert "Cosine similarity of features: negatives" not in rows
    assert rows["Cosine similarity of features: positives"][0] == "0.025"
    assert not drawing.warnings


def test_a_long_run_is_drawn_small(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(step(i)) + "\n" for i in range(1, 20_001)))
    assert len(train.draw(Report(), str(path)).html()) < 600_000


def test_a_run_of_one_logged_step_is_drawn(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "loss": 3.0}) + "\n")
    assert "data:image/svg" in train.draw(Report(), str(path)).html()


def test_results_are_means_over_seeds(stores):
    drawing = results.draw(Report(), str(stores.scores))
    frame = pd.read_csv(stores.scores)
    rows = {row[0]: row[1:] for row in cells(drawing.body)}
    for model, name in (("trained", "trained encoder"), ("pixels", "raw pixels")):
        values = frame[(frame.model == model) & (frame.metric == "knn_10")]["value"]
        assert rows[name][0] == f"{values.mean():.3f} ± {values.std():.3f}"
    assert list(rows)[1:] == [
        "raw pixels", "random weights", "trained encoder", "frozen (made the clusters)",
    ]  # fmt: skip
    assert "beats random weights and raw pixels on 2 of 2 metrics" in drawing.title
    assert drawing.body.count('class="number best"') == 2


def test_models_of_one_run_with_seeds_of_their_own_are_one_seed(stores, tmp_path):
    assert results.draw(Report(), str(stores.scores)).lead.endswith(
        "Means over 2 seeds, ± one standard deviation."
    )
    path = tmp_path / "summary.csv"
    path.write_text(
        "model,dataset,metric,value,seed\nrandom,d,knn,0.4,7\ntrained,d,knn,0.5,0\n"
        "trained,d,map,0.5,0\n"
    )
    assert "One seed" in results.draw(Report(), str(path)).lead


def test_results_that_learned_nothing_say_so(tmp_path):
    path = tmp_path / "summary.csv"
    path.write_text(
        "model,dataset,metric,value,seed\nrandom,d,knn,0.4,0\ntrained,d,knn,0.3,0\n"
        "trained,e,map,55.25,0\n"
    )
    drawing = results.draw(Report(), str(path))
    assert "beats random weights on 0 of 1 metrics" in drawing.title
    assert "may be chance" in drawing.lead
    assert ["trained encoder", "55.2"] in cells(drawing.body)
    assert ["random weights", "–"] in cells(drawing.body)


def test_results_know_what_is_better_and_what_was_published(tmp_path):
    path = tmp_path / "summary.csv"
    path.write_text(
        "model,dataset,metric,value,seed,better,published,difference\n"
        "random,d,knn,0.4,0,higher,,\ntrained,d,knn,0.5,0,higher,0.62,-0.12\n"
        "random,d,median_rank,0.9,0,lower,,\ntrained,d,median_rank,0.7,0,lower,,\n"
    )
    drawing = results.draw(Report(), str(path))
    assert "beats random weights on 2 of 2 metrics" in drawing.title
    assert drawing.lead.startswith("Higher is better, but for median_rank. ")
    assert drawing.body.count('class="number best">0.500') == 1
    assert drawing.body.count('class="number best">0.700') == 1
    assert cells(drawing.body)[-2:] == [
        ["published", "0.620", "–"],
        ["trained encoder − published", "−0.120", "–"],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "not readable as CSV"), ("model,dataset\na,b\n", "lacks the column metric"),
     ("model,dataset,metric,value,seed\n", "holds no value")],
)  # fmt: skip
def test_results_of_another_shape_are_refused(tmp_path, text, message):
    (tmp_path / "summary.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        results.draw(Report(), str(tmp_path / "summary.csv"))


def test_provenance_has_config_versions_and_true_hashes(stores, tmp_path, monkeypatch):
    monkeypatch.chdir(stores.folder)
    status = main(["report", "--part", "provenance", "--resolved", "report/config.yaml", "--files",
                   "evaluate/summary.csv", "clusters/centroids.h5",
                   "--output", str(tmp_path / "p.json"), str(tmp_path / "p.html")])  # fmt: skip
    assert status == 0
    values = read_json(tmp_path / "p.json")
    table, centroids = values["files"]
    assert table["file"] == "evaluate/summary.csv"
    assert table["hash"] == hashlib.sha256(stores.scores.read_bytes()).hexdigest()
    assert centroids["kind"] == "content (fingerprint)" and len(centroids["hash"]) == 64
    assert values["config"] == {"cluster": {"k": 4}, "label": {"top": 3}}
    assert values["packages"]["numpy"] == importlib.metadata.version("numpy")
    assert list(values["packages"]) == sorted(values["packages"])
    html = (tmp_path / "p.html").read_text()
    assert table["hash"] in html and values["packages"]["torch"] in html
    assert str(stores.folder) not in html + json.dumps(values)


def test_the_revision_is_read_from_git_and_knows_changes(tmp_path):
    def git(*words: str) -> str:
        who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        done = subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True,
                              capture_output=True, text=True)  # fmt: skip
        return done.stdout.strip()

    package = tmp_path / "src" / "mlcd"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert provenance.revision(package) is None
    git("init", "-q")
    (tmp_path / "other").write_text("")
    git("add", "other")
    git("commit", "-qm", "other")
    # A checkout that does not hold the package says nothing about it.
    assert provenance.revision(package) is None
    git("add", "src")
    git("commit", "-qm", "one")
    assert provenance.revision(package) == {"commit": git("rev-parse", "HEAD"), "modified": False}
    (package / "__init__.py").write_text("changed = True\n")
    assert provenance.revision(package)["modified"] is True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--part", "cluster", "--output", "a.html"], "--centroids: needed for --part cluster"),
        (["--part", "train", "--metrics", "m", "--output", "a.gif"], "a.gif: end it with one of"),
        (["--part", "train", "--metrics", "none.jsonl", "--output", "a.html"], "none.jsonl: no"),
    ],
)
def test_a_users_mistake_is_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said
    assert list(tmp_path.iterdir()) == []


def test_parts_without_a_chart_or_numbers_say_so(stores, tmp_path, capsys):
    for part, suffix in (("montage", "svg"), ("train", "json")):
        words = [*stores.options(part), "--output", str(tmp_path / f"a.{suffix}")]
        assert main(words) == 2
        assert "ask for .html" in capsys.readouterr().err


def test_label_page_follows_the_summary(stores, tmp_path):
    html = stores.draw("label", tmp_path / "l.html")
    summary = read_json(stores.summary)
    mean = summary["use_as_any_label"]["mean"]
    assert mean == len(CHUNKS) * N * L / K and f"{mean:,.1f} pictures on average" in html
    write_json(tmp_path / "s.json", {"num_classes": 3})
    assert main(["report", "--part", "label", "--summary", str(tmp_path / "s.json"),
                 "--output", str(tmp_path / "x.html")]) == 2  # fmt: skip


def test_cluster_page_counts_and_warns_of_empty_clusters(stores, tmp_path):
    html = stores.draw("cluster", tmp_path / "c.html")
    assert f"{len(CHUNKS) * N} pictures in {K} clusters" in html
    assert ["objective, first → last", "0.4000 → 0.6100"] in cells(html)
    empty = int((np.bincount(stores.label[:, 0], minlength=K) == 0).sum())
    assert ("clusters are empty" in html) == bool(empty)


def test_the_picture_of_the_pipeline_is_drawn_by_its_script():
    docs = Path(__file__).parent.parent / "docs"
    spec = importlib.util.spec_from_file_location("draw_pipeline", docs / "draw_pipeline.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (docs / "pipeline.svg").read_text(encoding="utf-8") == script.draw()
    # What only runs that ask for it have is left out.
    drawn = set(SECTIONS) - {"ablate", "text"}
    assert {stage[0] for stage in script.STAGES} == drawn
    picture = ElementTree.fromstring(script.draw())
    words = {element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert drawn <= words


def caption(name: str, config: dict) -> str:
    """A caption as Snakemake renders it."""
    docutils, jinja2 = pytest.importorskip("docutils.core"), pytest.importorskip("jinja2")
    source = (Path(__file__).parent.parent / "workflow" / "report" / f"{name}.rst").read_text()
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

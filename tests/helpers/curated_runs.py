"""What must hold of the results of a curated run, up to its labels and its page of the report."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mlcd import cli
from mlcd.commands.audit.explain import image
from mlcd.data.curation import Curation
from mlcd.data.embeddings import Embeddings
from mlcd.data.labels import Labels, of_run
from mlcd.utils.records import read_record


def check(results: Path, images: int) -> None:
    """Check that some of `images` were left out, each with its reason, and the others labeled."""
    summary = read_record(results / "curate" / "summary.json", "curate")
    assert summary["images"] == images > summary["kept"] > 4
    labels = read_record(results / "labels" / "summary.json", "label")
    assert labels["images"] == summary["kept"]
    left_out = [
        (rows, int(row))
        for rows in map(Curation, sorted((results / "curate" / "rows").iterdir()))
        for row in (~rows.kept()).nonzero()[0]
    ]
    assert len(left_out) == summary["images"] - summary["kept"]
    page = (results / "report" / "curate.html").read_text()
    assert f"{summary['kept']} of {summary['images']} images kept" in page
    rows, row = left_out[0]
    said = image(results, rows.chunk, rows.keys()[row].decode())
    decision = rows.decision(row)
    assert f"left out by curate: duplicate of {decision.chunk}/" in said[-1]
    _is_looked_at(results)


def _is_looked_at(results: Path) -> None:
    """Pages and tables of all clusters have each image that is kept once, and no other."""
    shown, tables = results.parent / "pages", results.parent / "tables"
    labels = [Labels(path) for path in of_run(results)]
    words = ["explore", str(results), "--index", str(results.parent / "index")]
    every = ["--clusters", f"0-{labels[0].num_classes - 1}"]
    assert cli.main([*words, "--export", str(shown), *every]) == 0
    pages = "".join(path.read_text() for path in shown.glob("cluster-*.html"))
    kept = [
        f"{one.chunk}/{key.decode()}"
        for one in labels
        for key in Embeddings(one.embeddings_in(results)).keys()  # noqa: SIM118 (no mapping)
    ]
    assert pages.count('<figure class="tile">') == len(kept) == sum(one.n for one in labels)
    assert cli.main([*words, "--tables", str(tables)]) == 0
    assert sorted(pd.read_parquet(tables / "images.parquet")["image"]) == sorted(kept)

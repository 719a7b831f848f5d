"""What must hold of the results of a curated run, up to its labels and its page of the report."""

from __future__ import annotations

from pathlib import Path

from mlcd import cli
from mlcd.commands.audit.explain import image
from mlcd.data.curation import Curation
from mlcd.data.embeddings import Embeddings
from mlcd.data.labels import Labels
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
    """Pages of all clusters show each image that is kept, once, and none that was left out."""
    shown = results.parent / "pages"
    words = ["explore", str(results), "--index", str(results.parent / "index")]
    count = Labels(next((results / "labels").glob("*.h5"))).num_classes
    assert cli.main([*words, "--export", str(shown), "--clusters", f"0-{count - 1}"]) == 0
    pages = "".join(path.read_text() for path in shown.glob("*.html"))
    for path in (results / "labels").glob("*.h5"):
        labels = Labels(path)
        kept = {key.decode() for key in Embeddings(labels.embeddings_in(results)).keys()}
        for key in Embeddings(results / "embeddings" / path.name).keys():
            assert (f"{labels.chunk}/{key.decode()}" in pages) == (key.decode() in kept), key

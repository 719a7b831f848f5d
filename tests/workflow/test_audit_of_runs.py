"""`mlcd audit` on whole runs: 200 changes, no false alarm, replay of every stage, what differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
import pytest

from helpers import audit_changes
from helpers.audit_changes import audit, found
from helpers.builders import jpeg
from helpers.checkout import ROOT, Checkout, serving
from mlcd.utils.records import read_record

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.long,
    pytest.mark.skipif(
        not (ROOT / "demo" / "openclipart.tar").exists(), reason="demo/openclipart.tar is missing"
    ),
    pytest.mark.timeout(3600),
]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def port_of(checkout: Checkout) -> int:
    """Return the port that the images were served at."""
    urls = pd.read_parquet(checkout.folder / "lists" / "first.parquet").url
    return int(urlsplit(urls[0]).port or 0)


def test_two_hundred_changes_are_found(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished.folder)
    copy = audit_changes.Copy(finished.folder / "results", tmp_path)
    tried = list(audit_changes.changes(copy.folder, 6))
    assert len(tried) >= 200
    assert [change.name for change in tried if not found(copy, change)] == []


def test_untouched_copied_moved_and_touched_runs_raise_no_alarm(finished, changed, tmp_path):
    root = read_record(finished.folder / "results/audit/lock.json", "audit")["root"]
    moved = (changed.folder / "results").rename(tmp_path / "elsewhere")
    for path in moved.rglob("*"):
        path.touch()
    (moved / "report.html").write_text("as snakemake --report writes it after the run")
    for results in (finished.folder / "results", moved):
        status, said = audit("verify", str(results), "--identity", root, "--bytes", "--numbers")
        assert status == 0, said
    assert audit("diff", str(finished.folder / "results"), str(moved))[0] == 0


def test_every_stage_gives_equal_bytes_again(finished, monkeypatch, tmp_path):
    # From another folder: what the run names by relative paths is found beside its results.
    monkeypatch.chdir(tmp_path)
    with serving(finished.folder.parent / "site", port_of(finished)):
        status, said = audit("replay", str(finished.folder / "results"), "--all")
    lines = said.splitlines()
    assert status == 0, said
    assert all(": equal: " in line for line in lines), said
    # urls, images, embeddings, clusters, labels and their summary, train, four features and four
    # scores, their summary, one export.
    assert len(lines) == 17, said


@pytest.mark.parametrize("kind", ["rate", "code", "image"])
def test_the_first_cause_of_a_difference_is_named(finished, changed, kind):
    site = finished.folder.parent / "site"
    urls = pd.read_parquet(finished.folder / "lists" / "first.parquet").url
    image = site / Path(urls[3]).name
    kept = image.read_bytes()
    if kind == "rate":
        changed.configure(train={"lr": 0.0013})
    elif kind == "code":
        edit(
            changed.folder / "src/mlcd/losses/objective.py",
            "return first + second",
            "return first + 2 * second",
        )
    else:
        shutil.rmtree(changed.folder / "results" / "images" / "first-00000")
        image.write_bytes(jpeg(5))
    try:
        with serving(site, port_of(finished)):
            done = changed.snakemake("--cores", "2", timeout=1800)
    finally:
        image.write_bytes(kept)
    assert done.returncode == 0, done.stdout[-6000:]
    status, said = audit("diff", f"{finished.folder}/results", f"{changed.folder}/results")
    assert status == 1
    trained = "of stage train:\n  train/encoder.json"
    first, cause = {
        "rate": (trained, "cause: train.lr: 0.002 in A, 0.0013 in B"),
        "code": (trained, "cause: code of train: losses.objective"),
        "image": ("of stage download:\n  images/first-00000/00000.tar",
                  "cause: image first-00000/000000003: sha256 "),
    }[kind]  # fmt: skip
    assert first in said and cause in said, said
    assert len(said.splitlines()) <= 40, said
    status, said = audit("verify", f"{changed.folder}/results", "--json")
    assert status == 0 and json.loads(said)["findings"] == {"chain": []}

"""The report's page of provenance."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import subprocess

from mlcd.cli import main
from mlcd.stages.report import provenance
from mlcd.utils.files import read_json


def test_provenance_has_config_versions_and_true_hashes(stores, tmp_path, monkeypatch):
    monkeypatch.chdir(stores.folder)
    status = main(["report", "--part", "provenance", "--resolved", "report/config.yaml", "--files",
                   "evaluate/summary.csv", "clusters/centroids.h5", "--own", "evaluate/summary.csv",
                   "--output", str(tmp_path / "p.json"), str(tmp_path / "p.html")])  # fmt: skip
    assert status == 0
    values = read_json(tmp_path / "p.json")
    table, centroids, own = values["files"]
    assert (
        own["kind"] == "size, first and last MiB"
        and own["hash"] in (tmp_path / "p.html").read_text()
    )
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

"""What `mlcd publish` takes of a run: no place of this machine, and no mark of strangers."""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import pandas as pd

from helpers.builders import jpeg
from helpers.small_runs import Run, mlcd
from mlcd import cli
from mlcd.commands.publish.source import without_places
from mlcd.data import centroids


def test_centers_and_lists_of_strangers_put_no_words_into_the_card(tmp_path, capsys):
    names = {"name": "`</code> | [win](http://evil)\n# now`", "weights_sha256": "`x"}
    for model in (json.dumps(names), "no JSON of /home/alice"):
        photos = tmp_path / "a`[win](x)`|b"
        photos.mkdir(exist_ok=True)
        (photos / "0.jpg").write_bytes(jpeg(0))
        given = tmp_path / "given.h5"
        centroids.write(
            given, centroid=np.eye(5, 8, dtype=np.float32), size=np.ones(5, np.int64),
            objective=np.zeros(1), empty=np.zeros(1, np.int64),
            attributes={"model": model, "embeddings": "[]", "section": "{}"},
        )  # fmt: skip
        labels = {"sha256": [hashlib.sha256(jpeg(0)).hexdigest()], "label": [[0, 1]]}
        pd.DataFrame(labels).to_parquet(tmp_path / "labels.parquet")
        run = Run(
            tmp_path / "run", [str(photos)], cluster={"k": 5, "centers": str(given)},
            label={"top": 2, "labels": [str(tmp_path / "labels.parquet")], "key": "sha256"},
        )  # fmt: skip
        run.fetch()
        run.label()
        run.seal()
        output = tmp_path / f"published-{len(model)}"
        words = ("publish", run.results, "--output", output, "--license", "MIT")
        if model.startswith("no"):
            assert cli.main([str(word) for word in words]) == 2
            centers = run.results / "clusters" / "centroids.h5"
            said = f"{centers}: attribute model is no JSON object; rerun cluster\n"
            assert capsys.readouterr().err.endswith(said)
            assert not output.exists()
            continue
        mlcd(*words)
        card = (output / "README.md").read_text()
        # Every word of theirs is between two backticks of ours.
        assert "win](" not in re.sub(r"`[^`\n]*`", "", card) and "\n# now" not in card
        assert not [path for path in output.rglob("*.*") if b"alice" in path.read_bytes()]


def test_settings_keep_no_place_of_this_machine():
    assert without_places({"a": ["/home/me/x.npy", "lists/a.parquet"], "b": 3}) == {
        "a": ["x.npy", "lists/a.parquet"], "b": 3,
    }  # fmt: skip
    cluster = {"initial": "runs/alice/centers.h5", "k": 8, "column": "a/b"}
    assert without_places({"cluster": cluster, "label": {"labels": ["private/*.npy"]}}) == {
        "cluster": {"initial": "centers.h5", "k": 8, "column": "a/b"},
        "label": {"labels": ["*.npy"]},
    }  # fmt: skip
    assert without_places("local-dir:/data/clip/") == "local-dir:clip"
    assert without_places("~/weights.pt") == "weights.pt"
    assert without_places("../up/x.pt") == "x.pt"
    assert without_places("hf-hub:org/name") == "hf-hub:org/name"
    assert without_places("https://spdx.org/x") == "https://spdx.org/x"
    for text in (
        "file:///home/alice/x.pt", r"C:\Users\Alice S\x.pt", r"\\host\alice\x.pt",
        "/home/alice s, b/x.pt", r"..\alice\x.pt", "local-dir:/home/alice s/x.pt",
        "one of ('/home/alice/x.pt')", '["/home/alice/x.pt"]', "key|/home/alice/x.pt;b",
    ):  # fmt: skip
        found = without_places(text)
        assert "x.pt" in found and "lice" not in found, found


def test_labels_of_a_chunk_that_the_run_no_longer_has_are_not_published(tmp_path):
    """A list that was taken out of the config leaves files of its chunks behind."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for row in range(7):
        (photos / f"{row}.jpg").write_bytes(jpeg(row))
    sections = {
        "prepare": {"chunk_rows": 4, "hash_column": None},
        "cluster": {"k": 3, "iterations": 2},
        "label": {"top": 2},
    }
    run = Run(tmp_path / "run", [str(photos)], **sections)
    run.fetch()
    run.label()
    first, _ = run.chunks
    centers = run.results / "clusters" / "centroids.h5"
    words = ["label", "--summarize", str(run.labels(first)), "--centroids", str(centers)]
    assert cli.main([*words, "--output", str(run.results / "labels" / "summary.json")]) == 0
    run.seal()
    output = tmp_path / "published"
    words = ["publish", str(run.results), "--output", str(output), "--license", "cc-by-4.0"]
    assert cli.main(words) == 0
    listed = pd.read_parquet(run.results / "images" / first / "rows.parquet")["sha256"]
    assert 0 < len(listed) < 7
    files = sorted((output / "data").glob("train-*.parquet"))
    found = pd.concat([pd.read_parquet(path) for path in files])
    assert sorted(found["sha256"]) == sorted(listed)

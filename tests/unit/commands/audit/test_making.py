"""How files are made again: from what their records name, and from nothing that lies beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.explored_runs import write_run
from mlcd.commands.audit.making import Making, command
from mlcd.commands.audit.nodes import collect
from mlcd.commands.audit.recorded import Cannot, Recorded
from mlcd.data import hdf5
from mlcd.data.labels import Labels
from mlcd.models import trainable
from mlcd.utils.errors import UserError
from mlcd.utils.records import read_with_checksum, write_record


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A run of the chunk photos-00001, and what an earlier config of it left behind."""
    results = write_run(tmp_path / "results", (4, 5), 3, 2)
    kept = Labels(results / "labels" / "photos-00001.h5").fingerprint
    for number, name in enumerate(("gone", "kept")):
        record = {"source": f"lists/{name}.parquet", "table": "0" * 64, "list": "1" * 16}
        write_record(results / "urls" / f"photos-{number:05d}.json", record)
        vectors = {"feature": np.full((2, 3), number, np.float32)}
        path = results / "evaluate" / "features" / f"trained-{name}.h5"
        hdf5.write(path, "features", vectors, {})
        record = {"scores": {"finetune": number}}
        write_record(results / "evaluate" / "finetune" / f"trained-{name}.json", record)
    encoder = trainable.build("test_vit", 8, 32, seed=1)
    trainable.save(encoder, results / "train", {"made_from": {"labels": [kept]}})
    evaluate = results / "evaluate"
    made = {
        "features": [hdf5.fingerprint(evaluate / "features" / "trained-kept.h5")],
        "more": [read_with_checksum(evaluate / "finetune" / "trained-kept.json", "evaluate")[1]],
    }
    write_record(evaluate / "trained.json", {"model": "trained", "made_from": made})
    return results


def recorded(results: Path) -> Recorded:
    nodes, _, _ = collect(results)
    section = {"datasets": [{"name": "kept"}, {"name": "gone"}]}
    stages = {name: {"section": {}} for name in ("train", "export", "label")}
    lock = {
        "stages": {**stages, "evaluate": {"section": section}},
        "inputs": [],
        "files": {path: node.record() for path, node in nodes.items()},
    }
    return Recorded(results, lock)


def files_of(words: list[str], option: str, results: Path) -> list[str]:
    """The values of an option, below the results where they lie there."""
    found = []
    for word in words[words.index(f"--{option}") + 1 :]:
        if word.startswith("--"):
            break
        found.append(word.removeprefix(f"{results.resolve()}/"))
    return found


def test_a_chunk_that_the_run_no_longer_has_is_not_trained_on(results, tmp_path):
    words = command(recorded(results), Making("train"), tmp_path).words
    assert files_of(words, "labels", results) == ["labels/photos-00001.h5"]
    assert files_of(words, "images", results) == ["images/photos-00001/manifest.json"]
    assert files_of(words, "embeddings", results) == ["embeddings/photos-00001.h5"]


def test_nor_is_its_list_named_by_an_export(results, tmp_path):
    words = command(recorded(results), Making("export", "timm"), tmp_path).words
    assert files_of(words, "labels", results) == ["labels/photos-00001.h5"]
    assert files_of(words, "lists", results) == ["./kept.parquet"]


def test_an_export_names_folders_as_the_config_does(results, tmp_path):
    """Chunks of a folder name its listing: photos.parquet where the config says photos."""
    config = results / "report" / "config.yaml"
    config.parent.mkdir()
    config.write_text("metadata: [in/photos, lists/kept.parquet]\n")
    try:
        words = command(recorded(results), Making("export", "timm"), tmp_path).words
        assert files_of(words, "lists", results) == ["./photos", "./kept.parquet"]
        config.write_text("metadata: 3\n")
        with pytest.raises(UserError, match=r"report/config.yaml: is no config of a run"):
            command(recorded(results), Making("export", "timm"), tmp_path)
    finally:
        config.unlink()
        config.parent.rmdir()


def test_nor_are_results_of_a_task_that_is_no_longer_asked_for(results, tmp_path):
    words = command(recorded(results), Making("scores", "trained"), tmp_path).words
    assert files_of(words, "features", results) == ["evaluate/features/trained-kept.h5"]
    assert files_of(words, "more", results) == ["evaluate/finetune/trained-kept.json"]
    assert files_of(words, "model", results) == ["trained"]


def test_labels_that_are_not_of_the_run_are_said(results, tmp_path):
    (results / "labels" / "photos-00001.h5").unlink()
    with pytest.raises(Cannot, match="labels: not all files"):
        command(recorded(results), Making("train"), tmp_path)

"""`mlcd audit` on a few stores: the chain, the seal, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.builders import jpeg
from helpers.refusals import refused
from helpers.report_stores import CHUNKS, Stores
from mlcd import cli
from mlcd.commands.audit import compare, explain, lock
from mlcd.commands.audit.nodes import collect
from mlcd.data import hdf5
from mlcd.utils.files import sha256_file
from mlcd.utils.fingerprint import file_identity
from mlcd.utils.records import read_record, write_csv, write_record

STAGES = {
    "label": {"section": {"top": 3}, "code": "a" * 16, "how": {}},
    "train": {"section": {"lr": 0.1, "seed": 0}, "code": "b" * 16, "how": {"nodes": 1}},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "results"
    Stores(folder)
    # Pages and tables that these stores write by hand.
    for name in (".snakemake", "ablate", "report"):
        (folder / name).rename(folder.parent / name)
    return folder


def seal(results: Path, stages: dict | None = None) -> str:
    assert cli.main(["audit", "seal", str(results), "--stages", json.dumps(stages or STAGES)]) == 0
    return read_record(results / lock.LOCK, "audit")["root"]


def test_every_file_names_what_it_was_made_from(results):
    nodes, problems, others = collect(results)
    assert (problems, others) == ([], [])
    chunk = CHUNKS[0]
    images = nodes[f"images/{chunk}/manifest.json"]
    vectors = nodes[f"embeddings/{chunk}.h5"]
    labels = nodes[f"labels/{chunk}.h5"]
    assert images.hash in vectors.inputs
    assert set(labels.inputs) == {vectors.hash, nodes["clusters/centroids.h5"].hash}
    assert labels.hash in nodes["labels/summary.json"].inputs
    assert nodes[f"images/{chunk}/00000.tar"].hash in images.inputs
    assert not nodes["train/metrics.jsonl"].repeats


@pytest.mark.parametrize("sealed", [True, False])
def test_the_results_of_another_run_may_lie_below(results, tmp_path, sealed):
    """The README's own `results: results/mine` lies below the demo's results."""
    outer, inner = tmp_path / "results", tmp_path / "results" / "more" / "mine"
    shutil.copytree(results, outer)
    root = seal(outer)
    shutil.copytree(results, inner)
    # Of other images: nothing here would name what it was made from.
    weights = inner / "train" / "encoder.json"
    weights.parent.mkdir(exist_ok=True)
    weights.write_text("{}")
    if sealed:
        (inner / "audit").mkdir(exist_ok=True)
        (inner / "audit" / "lock.json").write_text("{}")
    else:
        (inner / "urls").mkdir(exist_ok=True)
        (inner / "urls" / "photos-00000.json").write_text("{}")
    assert seal(outer) == root
    assert collect(outer)[1:] == ([], [])
    assert cli.main(["audit", "verify", str(outer)]) == 0


def test_no_folder_of_a_stage_passes_for_another_run(results, tmp_path):
    """Else one more file would hide the others beside it."""
    outer = tmp_path / "results"
    shutil.copytree(results, outer)
    nodes = collect(outer)[0]
    (outer / "labels" / "audit").mkdir()
    (outer / "labels" / "audit" / "lock.json").write_text("{}")
    assert collect(outer)[0] == nodes


def test_weights_in_a_folder_of_no_stage_are_named_and_not_read(results, tmp_path):
    outer = tmp_path / "results"
    shutil.copytree(results, outer)
    (outer / "mine").mkdir()
    (outer / "mine" / "encoder.json").write_text("no json")
    assert collect(outer)[1:] == ([], ["mine/encoder.json"])


def test_centers_name_their_embeddings_unless_they_are_of_another_run(results, tmp_path):
    """A section names centers only where they were given; the key is always there."""
    said = json.dumps(["a" * 64])
    for number, (centers, inputs) in enumerate([(None, ("a" * 64,)), ("b" * 64, ())]):
        section = json.dumps({"centers": centers, "k": 4})
        file = tmp_path / str(number) / "clusters" / "centroids.h5"
        hdf5.write(file, "centroids", {"centroid": np.zeros((4, 2))},
                   {"embeddings": said, "section": section})  # fmt: skip
        nodes = collect(tmp_path / str(number))[0]
        assert nodes["clusters/centroids.h5"].inputs == inputs
    # Kept ones may be of images before a later top-up.
    nodes = collect(tmp_path / "0")[0]
    assert lock.crossings(nodes, STAGES, []) == [("clusters/centroids.h5", "a" * 64)]
    assert lock.crossings(nodes, {"cluster": {"section": {"centers": "x.h5"}}}, []) == []


def test_the_identity_is_of_content_sections_and_code_alone(results, tmp_path):
    first = seal(results)
    (results / "train" / "metrics.jsonl").touch()
    assert seal(results) == first
    other = {**STAGES, "train": {**STAGES["train"], "code": "c" * 16}}
    assert seal(results, other) != first
    other = {**STAGES, "label": {**STAGES["label"], "section": {"top": 4}}}
    assert seal(results, other) != first
    assert seal(results) == first


def test_no_run_is_sealed_that_is_not_whole(results, tmp_path, capsys):
    capsys.readouterr()
    path = results / "labels" / f"{CHUNKS[0]}.h5"
    away = path.rename(tmp_path / "away.h5")
    assert cli.main(["audit", "seal", str(results)]) == 2
    refused(capsys, "labels/summary.json: made from a file of hash")
    away.rename(path)
    tar = results / "images" / CHUNKS[0] / "00000.tar"
    away = tar.rename(tmp_path / "away.tar")
    assert cli.main(["audit", "seal", str(results)]) == 2
    refused(capsys, "00000.tar: missing")
    away.rename(tar)


def test_what_cannot_be_told_is_not_called_different(results, tmp_path, capsys):
    assert cli.main(["audit", "verify", str(tmp_path)]) == 2
    refused(capsys, "lock.json: no such file")
    seal(results)
    capsys.readouterr()
    assert cli.main(["audit", "verify", str(results), "--sample", "2"]) == 2
    refused(capsys, "--sample")
    assert cli.main(["audit", "explain", str(results), "labels/none.h5"]) == 2
    refused(capsys, "no file of this run's lock")
    assert cli.main(["audit", "explain", str(results), "cluster:none"]) == 2
    assert cli.main(["audit", "replay", str(results), "../outside.h5"]) == 2


def test_a_lock_that_was_edited_with_its_checksum_is_found(results, capsys):
    seal(results)
    path = results / lock.LOCK
    kept = path.read_bytes()
    value = read_record(path, "audit")
    value["files"].pop(f"labels/{CHUNKS[1]}.h5")
    write_record(path, value)
    with pytest.raises(SystemExit) as end:
        cli.main(["audit", "verify", str(results)])
    assert end.value.code == 1
    said = capsys.readouterr().out
    assert "the lock was edited" in said
    assert f"labels/{CHUNKS[1]}.h5: added since the run was sealed" in said
    path.write_bytes(kept)
    assert cli.main(["audit", "verify", str(results)]) == 0


def test_two_runs_are_compared_key_by_key(results, tmp_path, capsys):
    other = tmp_path / "results"
    Stores(other)
    for name in (".snakemake", "ablate", "report"):
        (other / name).rename(tmp_path / name)
    seal(results)
    seal(other, {**STAGES, "train": {**STAGES["train"], "section": {"lr": 0.2, "seed": 0}}})
    equal, lines = compare.difference(results, other)
    assert not equal
    # These stores have no weights that would differ.
    assert "cause: train.lr: 0.1 in A, 0.2 in B (all files of train are equal)" in lines
    assert "all files that repeat are equal" in lines
    assert not any("train.seed" in line or "label." in line for line in lines)
    seal(other)
    assert compare.difference(results, other)[0]


def test_a_stage_and_inputs_of_one_name_are_causes(results, tmp_path):
    seal(results)
    one = lock.read(results)
    entry = {"hash": "1" * 64, "of": "bytes", "bytes": 1, "identities": []}
    one["inputs"] = [{"name": "photos.parquet", **entry} for _ in range(2)]
    other = json.loads(json.dumps(one))
    other["inputs"][0]["hash"] = "2" * 64
    assert compare._inputs(one, other) == ["cause: the input photos.parquet differs"]
    other["inputs"].reverse()
    assert compare._inputs(other, json.loads(json.dumps(other))) == []
    del other["stages"]["label"]
    causes = compare._causes(results, results, one, other, {})
    assert causes == ["cause: the stage label is in A only"]


def test_a_file_is_from_the_inputs_that_it_was_made_from_alone(results, tmp_path):
    seal(results)
    found = lock.read(results)
    chunk = CHUNKS[0]
    made_from = found["files"][f"embeddings/{chunk}.h5"]["inputs"][0]
    entry = {"of": "bytes", "bytes": 1}
    found["inputs"] = [
        {"name": "list.parquet", "hash": "1" * 64, "identities": [made_from], **entry},
        {"name": "imagenet", "hash": "2" * 64, "identities": ["of scores"], **entry},
        {"name": "table.csv", "hash": "3" * 64, "identities": ["nobody's"], **entry},
    ]
    found["files"]["clusters/centroids.h5"]["inputs"].append("of scores")
    lines = explain.lineage(results, found, f"embeddings/{chunk}.h5")
    assert any(line.startswith("from the input list.parquet: bytes 111") for line in lines)
    assert not any("imagenet" in line for line in lines)
    assert any(line.startswith("an input of the run, which no file names: table") for line in lines)


def test_an_image_that_is_another_one_is_named_as_the_cause(results, tmp_path):
    images = [jpeg(number) for number in range(30)]
    images[3] = jpeg(77)
    other = tmp_path / "results"
    Stores(other, images)
    for name in (".snakemake", "ablate", "report"):
        (other / name).rename(tmp_path / name)
    seal(results)
    seal(other)
    equal, lines = compare.difference(results, other)
    assert not equal
    assert "the first files that differ, of stage download:" in lines
    causes = [line for line in lines if line.startswith("cause: ")]
    assert len(causes) == 1
    assert causes[0].startswith(f"cause: image {CHUNKS[0]}/000000003: sha256 ")


def test_accepted_changes_of_code_are_shown(results, capsys):
    path = results / "train" / "encoder.json"
    weights = path.with_suffix(".safetensors")
    weights.write_bytes(b"weights")
    change = {"step": 40, "modules": {"losses.objective": ["mlcd"]}, "reason": "same numbers"}
    write_record(path, {"sha256": sha256_file(weights), "accepted_code": [change]})
    seal(results)
    capsys.readouterr()
    assert cli.main(["audit", "verify", str(results)]) == 0
    note = "train/encoder.json: other code was accepted at step 40: losses.objective; reason: same"
    assert f"note: {note}" in capsys.readouterr().out
    assert cli.main(["audit", "explain", str(results), "train/encoder.safetensors"]) == 0
    assert f"note: {note}" in capsys.readouterr().out
    path.unlink()
    weights.unlink()


def test_a_summary_that_is_not_of_its_scores_breaks_the_chain(results, capsys):
    for name in ("trained", "pixels"):
        scores = {"few": {"scores": {"knn_3": 0.5}, "chance": {"knn_3": 0.1}}}
        about = {"model": name, "seed": 0, "datasets": scores}
        write_record(results / "evaluate" / f"{name}.json", about)
    kept = (results / "evaluate" / "summary.csv").read_bytes()
    rows = [["trained", "few", "knn_3", "0.5000", 0, ""], ["pixels", "few", "knn_3", "0.9", 0, ""]]
    columns = ["model", "dataset", "metric", "value", "seed", "encoder_sha256"]
    write_csv(results / "evaluate" / "summary.csv", columns, rows)
    seal(results)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(["audit", "verify", str(results)])
    assert end.value.code == 1
    assert "evaluate/summary.csv: pixels few knn_3 is not 0.5" in capsys.readouterr().out
    for name in ("trained", "pixels"):
        (results / "evaluate" / f"{name}.json").unlink()
    (results / "evaluate" / "summary.csv").write_bytes(kept)


def test_a_list_that_is_not_the_one_of_the_chunks_is_no_input(results, tmp_path, capsys):
    table = results / "urls" / f"{CHUNKS[0]}.parquet"
    table.parent.mkdir(exist_ok=True)
    table.write_bytes(b"a table")
    about = {"source": "l.parquet", "list": "0" * 16, "table": sha256_file(table)}
    write_record(table.with_suffix(".json"), about)
    capsys.readouterr()
    assert cli.main(["audit", "seal", str(results), "--stages", json.dumps(STAGES)]) == 2
    refused(capsys, f"urls/{CHUNKS[0]}.parquet: made from a file of hash 0000")
    listed = tmp_path / "l.txt"
    listed.write_text("http://a.org/1.jpg\n")
    write_record(table.with_suffix(".json"), {**about, "list": file_identity(str(listed))})
    words = ["--stages", json.dumps(STAGES), "--inputs", str(listed)]
    assert cli.main(["audit", "seal", str(results), *words]) == 0
    # An absolute path is no matter of others.
    assert str(tmp_path) not in (results / lock.LOCK).read_text()
    table.unlink()
    table.with_suffix(".json").unlink()


@pytest.mark.parametrize(
    "edit",
    [{"files": []}, {"files": {"labels/a.h5": 3}}, {"inputs": [{"name": 3}]}, {"stages": []},
     {"stages": {"train": "x"}}, {"not_locked": [7]}, {"root": None},
     {"files": {"labels/a.h5": {"stage": "nowhere", "hash": "", "of": "", "size": 0,
                                "inputs": [], "repeats": True}}}],
)  # fmt: skip
def test_a_lock_of_other_types_is_damaged_and_not_different(results, tmp_path, capsys, edit):
    seal(results)
    value = read_record(results / lock.LOCK, "audit")
    write_record(tmp_path / lock.LOCK, {**value, **edit})
    for words in (["verify"], ["replay", "--all"], ["explain", "labels/a.h5"]):
        capsys.readouterr()
        assert cli.main(["audit", words[0], str(tmp_path), *words[1:]]) == 2
        refused(capsys, "so it is damaged")

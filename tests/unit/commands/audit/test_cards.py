"""Model cards of a sealed run: they name it, and what they say of it is verified."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from helpers.audit_changes import audit
from helpers.exported_runs import SCORES, seal, write_run
from helpers.exports import export
from mlcd.commands.audit import lock
from mlcd.commands.audit.nodes import collect
from mlcd.data.undeclared import Seen, changed
from mlcd.utils.files import read_json, sha256_file
from mlcd.utils.records import read_record, write_record

CARD = "export/timm/README.md"


@pytest.fixture(scope="module")
def sealed(tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("run") / "results"
    write_run(results)
    seal(results)
    return results


@pytest.fixture
def results(sealed, tmp_path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(sealed, tmp_path / "results")


def locked(results: Path, path: str) -> dict:
    return read_record(results / lock.LOCK, "audit")["files"][path]


def forged(results: Path) -> None:
    """Let the lock hold the card as it is: its root hash is not of cards."""
    value = read_record(results / lock.LOCK, "audit")
    card = results / CARD
    value["files"][CARD] |= {"hash": sha256_file(card), "size": card.stat().st_size}
    write_record(results / lock.LOCK, value)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_seal_lets_the_card_name_the_run(results):
    root = read_record(results / lock.LOCK, "audit")["root"]
    card = ModelCard.load(results / CARD)
    assert card.data["mlcd_run"] == root
    assert f"Identity of the run: `{root}`." in card.text
    assert locked(results, CARD)["hash"] == sha256_file(results / CARD)
    assert audit("verify", str(results), "--bytes", "--identity", root)[0] == 0


def test_the_scores_of_a_sealed_card_are_those_of_the_files(results):
    found = read_record(results / "evaluate" / "trained.json", "evaluate")["datasets"]
    measured = {(name, metric): value for name, one in found.items()
                for metric, value in one["scores"].items() if metric != "zero_shot"}  # fmt: skip
    card = ModelCard.load(results / CARD).data
    assert {(r.dataset_name, r.metric_type): r.metric_value for r in card.eval_results} == measured
    assert len(measured) == len(SCORES) - 1
    assert (card.license, card.datasets) == ("cc-by-4.0", ["photos.parquet"])


def test_the_identity_is_none_of_what_it_is_of(results):
    """A card before and after the seal gives one identity; check.json does not name the card."""
    nodes, _, _ = collect(results)
    assert not nodes[CARD].repeats
    assert nodes[CARD].hash not in nodes["export/timm/check.json"].inputs
    root = seal(results)
    edit(results / CARD, "## Use", "## How to use it")
    assert seal(results) == root


def test_sealing_again_gives_equal_bytes_and_touches_no_card(results):
    before = {path: path.read_bytes() for path in (results / CARD, results / lock.LOCK)}
    time = (results / CARD).stat().st_mtime_ns
    seal(results)
    assert (results / CARD).stat().st_mtime_ns == time
    assert {path: path.read_bytes() for path in before} == before


def test_a_seal_that_was_killed_after_the_cards_gives_the_same_bytes(results, tmp_path):
    before = {name: (results / name).read_bytes() for name in (CARD, str(lock.LOCK))}
    write_run(tmp_path / "fresh")
    # The cards of it are written, and nothing else.
    (tmp_path / "fresh" / CARD).write_bytes(before[CARD])
    seal(tmp_path / "fresh")
    for name, data in before.items():
        assert (tmp_path / "fresh" / name).read_bytes() == data, name


def test_another_seal_takes_the_place_of_the_first(results):
    first = (results / CARD).read_bytes()
    old = read_record(results / lock.LOCK, "audit")["root"]
    new = seal(results, {"train": {"section": {"lr": 0.2}, "code": "b" * 16}})
    text = (results / CARD).read_text()
    assert new != old and old not in text and text.count(new) == 3
    assert seal(results) == old
    assert (results / CARD).read_bytes() == first


def test_naming_the_run_makes_no_export_stale(results):
    """Planning asks for what check.json names, and for nothing that the seal writes."""
    (results / CARD).touch()
    record = results / "export" / "timm" / "check.json"
    assert changed(str(record), Seen(results / "seen.json")) == ""
    assert "README.md" not in read_json(record)["files"]


def test_a_card_of_another_run_is_found_though_the_lock_fits_it(results, tmp_path):
    write_run(tmp_path / "other", seed=1)
    other = seal(tmp_path / "other")
    shutil.copy(tmp_path / "other" / CARD, results / CARD)
    forged(results)
    status, said = audit("verify", str(results))
    assert status == 1 and f"{CARD}: names the run {other}, and this is" in said


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("value: 0.8125", "value: 0.9999", "says digits knn_10 0.9999, and evaluate/summary.csv"),
        ("type: knn_10", "type: [1, 2]", "and evaluate/summary.csv says"),
        ("type: linear_probe", "type: linear", "says digits linear 1.0, and"),
        ("mlcd_run: ", "mlcd_ran: ", "do not name one run"),
        ("tags:", "tags: {", "front matter is damaged or edited"),
        ("license: cc-by-4.0", "ignore_metadata_errors: 1", "front matter is damaged or edited"),
    ],
)
def test_what_a_card_says_wrongly_is_found_though_the_lock_fits_it(results, old, new, what):
    edit(results / CARD, old, new)
    forged(results)
    status, said = audit("verify", str(results))
    assert status == 1 and what in said, said


def test_a_card_of_other_weights_is_found_though_it_names_the_run(results):
    weights = read_json(results / "train" / "encoder.json")["sha256"]
    edit(results / CARD, weights, "0" * 64)
    forged(results)
    assert "is of other weights than the export" in audit("verify", str(results))[1]


@pytest.mark.parametrize("text", ["# By hand\n", "no front matter\n<!-- written by mlcd -->\n"])
def test_a_card_that_is_not_ours_is_left_as_it_is(results, text, caplog):
    (results / CARD).write_text(text)
    seal(results)
    assert (results / CARD).read_text() == text
    assert locked(results, CARD)["hash"] == sha256_file(results / CARD)


def test_a_card_that_was_exported_by_hand_may_show_no_scores(tmp_path):
    results = tmp_path / "results"
    write_run(results)
    export(results / "train", results / "export", "timm")
    seal(results)
    assert ModelCard.load(results / CARD).data.eval_results is None
    assert audit("verify", str(results))[0] == 0


def test_a_card_with_scores_that_the_run_lacks_is_found(tmp_path):
    results = tmp_path / "results"
    card = write_run(results)
    (results / "evaluate" / "summary.csv").unlink()
    seal(results)
    status, said = audit("verify", str(results))
    assert status == 1 and "evaluate/summary.csv says none" in said
    assert ModelCard.load(card).data.eval_results

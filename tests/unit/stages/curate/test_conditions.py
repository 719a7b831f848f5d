"""Conditions on columns: their grammar, values of all types, and where columns come from."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from helpers.builders import embeddings_file, unit_vectors
from helpers.curate_runs import Run, run
from helpers.refusals import refused as refuses
from mlcd.config import Config, Curate
from mlcd.config.curate import Condition
from mlcd.data import columns
from mlcd.data.curation import Facts
from mlcd.data.url_lists import Chunk
from mlcd.stages.curate.conditions import refused, words
from mlcd.utils.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aesthetic >= 5", ("aesthetic", ">=", 5.0)),
        (" a<-.5e3 ", ("a", "<", -500.0)),
        ("license==cc-by", ("license", "=", "cc-by")),
        ("license != ''", ("license", "!=", "")),
        ('`my column` = "it\'s"', ("my column", "=", "it's")),
        ("nsfw = false", ("nsfw", "=", "false")),
    ],
)
def test_a_condition_is_read(text: str, expected: tuple) -> None:
    found = Condition.parse(text)
    assert found == expected
    assert Condition.parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    ["", "aesthetic", ">= 5", "a > b", "a => 5", "a = b c", "a > 5 or b > 5", "a < nan", "a < inf",
     "__import__('os').system('id') = 1", "a = 'x", "a.b() > 1 and 2", "a ='x' 'y'"],
)  # fmt: skip
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Condition.parse(text)
    with pytest.raises(ValidationError):
        Curate(where=[text])


@pytest.mark.parametrize(
    ("text", "values", "kind", "expected"),
    [
        ("a >= 5", [5, 4.9, None, float("nan"), 7], pa.float32(), [-1, 0, 1, 1, -1]),
        ("a != 3", [3, 4, None], pa.int64(), [0, -1, 1]),
        ("a < 0.5", [b"0.4", b" 0.4 ", b"x", b"", None, b"1_0"], pa.large_binary(),
         [-1, -1, 1, 1, 1, 1]),
        ("a = 'b c'", [b"b c", b"b", None, b"\xff"], pa.large_binary(), [-1, 0, 1, 0]),
        ("a != b", [b"b", b"c"], pa.large_binary(), [0, -1]),
        ("a = true", [True, False, None], pa.bool_(), [-1, 0, 1]),
        ("a = True", [True, False, None], pa.bool_(), [-1, 0, 1]),
        ("a != TRUE", [True, False, None], pa.bool_(), [0, -1, 1]),
        ("a != true", [b"True", b"False", b"TRUE", b"other", None], pa.large_binary(),
         [0, -1, 0, -1, 1]),
        ("a != none", [b"", b"none", None, b"x"], pa.large_binary(), [1, 0, 1, -1]),
        ("a != ''", [b"", b"x", None], pa.large_binary(), [0, -1, 1]),
        ("a = 1", [None, None], pa.null(), [1, 1]),
        ("a > 1e18", [2**60 + 1, 2**53 + 1, None], pa.int64(), [-1, 0, 1]),
        ("a > 1e18", [2**63 + 5, 1], pa.uint64(), [-1, 0]),
    ],
)  # fmt: skip
def test_values_of_every_type(text: str, values: list, kind, expected: list[int]) -> None:
    found = refused([Condition.parse(text)], lambda _: pa.array(values, kind), "list")
    assert found.tolist() == expected


def test_the_first_condition_that_fails_is_the_reason() -> None:
    conditions = [Condition.parse("a > 1"), Condition.parse("b = x")]
    values = {"a": pa.array([0.0, 2.0, 2.0]), "b": pa.array([b"y", b"y", None], pa.large_binary())}
    found = refused(conditions, values.__getitem__, "list")
    told = words(conditions)
    assert [told[code] for code in found] == ["a > 1 fails", "b = 'x' fails", "no b"]


def test_a_type_that_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match=r"column 'a' has truth values, and .*write true or false"):
        refused([Condition.parse("a != yes")], lambda _: pa.array([True]), "list")
    with pytest.raises(UserError, match=r"list: column 'a' is of type .*list.*cannot compare"):
        refused([Condition.parse("a > 1")], lambda _: pa.array([[1.0]]), "list")
    with pytest.raises(UserError, match="column 'a' is of type int64"):
        refused([Condition.parse("a = x")], lambda _: pa.array([1]), "list")


def listed(made: Run, path: Path, **column: list) -> Path:
    """Write a list of the images of all chunks of a run, with a row before them and one twice."""
    urls = [
        url for manifest in made.images
        for url in pd.read_parquet(manifest.parent / "rows.parquet")["url"]
    ]  # fmt: skip
    frame = pd.DataFrame({"url": urls, **column})
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False, row_group_size=7)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(frame.to_csv(index=False).encode()))
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.tsv", "a.csv.gz"])
def test_columns_of_the_list_and_of_tables(tmp_path: Path, name: str, capsys) -> None:
    rows = unit_vectors(30, 8, seed=1)
    made = Run(tmp_path, rows, chunks=1, where="score >= 0.5")
    score = np.linspace(0, 1, 30)
    values = [None if row == 20 else float(value) for row, value in enumerate(score)]
    path = listed(made, tmp_path / name, score=values)
    expected = np.where(score < 0.5, 0, -1)
    expected[20] = 1
    (facts,) = made.facts("--metadata", path, "--list-rows", "0:30")
    found = Facts(facts)
    np.testing.assert_array_equal(found.refused(), expected)
    assert found.reasons == ["score >= 0.5 fails", "no score"]
    assert (found.pixels() == 48 * 48).all()
    # Only the chunk's part of the list is read.
    (facts,) = made.facts("--metadata", path, "--list-rows", "16:30")
    np.testing.assert_array_equal(Facts(facts).refused()[16:], expected[16:])
    assert (Facts(facts).refused()[:16] == 1).all()
    (facts,) = made.facts("--columns", path)
    np.testing.assert_array_equal(Facts(facts).refused(), expected)
    decided = made.choose("--duplicate-similarity", "null")[0]
    np.testing.assert_array_equal(decided.kept(), expected < 0)
    summary = json.loads((made.out / "summary.json").read_text())
    assert summary["left_out"] == {
        "score >= 0.5 fails": 15, "no score": 1, "duplicate": 0, "balance": 0, "cap": 0,
    }  # fmt: skip
    words = ["--embeddings", made.embeddings[0], "--images", made.images[0], "--centroids",
             made.centroids, "--output", tmp_path / "f.h5", *made.options]  # fmt: skip
    assert run("facts", *words) == 2
    refuses(capsys, "--metadata: curate.where needs the chunk's list")
    for span in ("30", "20:10"):
        assert run("facts", *words, "--metadata", path, "--list-rows", span) == 2
        refuses(capsys, f"--list-rows: expected START:STOP, got '{span}'")


def test_a_table_may_be_of_some_chunks_but_not_of_none(tmp_path: Path, capsys) -> None:
    """The scores of the good half of a list are such a table."""
    made = Run(tmp_path, unit_vectors(30, 8, seed=1), chunks=2, where="score >= 0.5")
    images = [pd.read_parquet(path.parent / "rows.parquet") for path in made.images]
    table = tmp_path / "scores.csv"
    pd.DataFrame({"hash": images[0]["sha256"], "score": 1.0}).to_csv(table, index=False)
    made.facts("--columns", table, "--key", "hash")
    assert (
        "scores.csv: no row is of any of the 15 images of chunk a-00001" in capsys.readouterr().err
    )
    first, second = made.choose("--duplicate-similarity", "null")
    assert first.kept().all() and not second.kept().any()
    pd.DataFrame({"hash": ["x"], "score": [1.0]}).to_csv(table, index=False)
    facts = made.facts("--columns", table, "--key", "hash")
    words = ["--embeddings", *made.embeddings, "--facts", *facts, "--output", made.out]
    assert run("choice", *words, *made.options) == 2
    refuses(capsys, "curate.where: leaves out all 30 images (no score: 30)")


def test_what_is_refused_does_not_stand_for_a_duplicate(tmp_path: Path) -> None:
    rows = np.repeat(unit_vectors(10, 8, seed=1), 3, axis=0)
    made = Run(tmp_path, rows, chunks=1, where="score > 0")
    path = listed(made, tmp_path / "a.csv", score=[row % 3 for row in range(30)])
    made.facts("--metadata", path, "--list-rows", "0:30")
    one = made.choose()[0]
    assert one.kept().tolist() == [False, True, False] * 10
    decision = one.decision(2)
    assert decision is not None and (decision.reason, decision.row) == ("duplicate", 1)
    refused_row = one.decision(0)
    assert refused_row is not None and refused_row.reason == "score > 0 fails"
    assert refused_row.chunk == ""


def test_tables_of_several_types_of_numbers_are_one_column(tmp_path: Path) -> None:
    """pandas writes whole numbers as float64 where one is missing."""
    pieces = [([3, 1], pa.int64()), ([None, 2.5], pa.float64()), ([None, None], pa.null()),
              ([7, 8], pa.int32())]  # fmt: skip
    parts = []
    for number, (values, kind) in enumerate(pieces):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"url": ["a", "b"], "s": pa.array(values, kind)}), path)
        parts.append(columns.Part(str(path), 0, 2))
    table = columns.Table(parts, "url")
    found = table.take("s", np.array([7, 0, 2, -1, 3, 5]))
    assert found.to_pylist() == [8, 3, None, None, 2.5, None]
    assert table.take("s", np.array([4, -1])).to_pylist() == [None, None]
    assert columns.Table(parts[:1], "url").take("s", np.array([0])).type == pa.int64()
    path = tmp_path / "text.parquet"
    pq.write_table(pa.table({"url": ["a"], "s": ["x"]}), path)
    mixed = columns.Table([*parts[2:], columns.Part(str(path), 0, 1)], "url")
    with pytest.raises(UserError, match=r"3.parquet: column 's' is int32, and .*text.parq"):
        mixed.take("s", np.array([2, 4]))


def test_images_that_were_not_judged_are_not_kept_for_the_text_tower(tmp_path: Path) -> None:
    """Own embeddings may lack images, which the trained encoder then embeds all the same."""
    rows = unit_vectors(30, 8, seed=1)
    made = Run(tmp_path, rows, chunks=1, where="score > 0")
    path = listed(made, tmp_path / "a.csv", score=[1.0] * 30)
    made.embeddings[0].unlink()
    embeddings_file(made.embeddings[0], rows[:29], manifest=made.images[0])
    made.facts("--metadata", path, "--list-rows", "0:30")
    (decided,) = made.choose("--duplicate-similarity", "null")
    others = embeddings_file(tmp_path / "text.h5", unit_vectors(30, 4), manifest=made.images[0])
    with h5py.File(made.embeddings[0]) as file:
        judged = file["key"][:]
    with h5py.File(others) as file:
        beside = file["key"][:]
    assert len(set(beside.tolist()) - set(judged.tolist())) == 1
    output = tmp_path / "kept.h5"
    assert not run("kept", "--embeddings", others, "--rows", decided.path, "--output", output)
    with h5py.File(output) as file:
        assert file["key"][:].tolist() == judged.tolist()


def test_columns_are_looked_for_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("url,score\nhttp://a/b,1\n")

    def check(chunk: Chunk, **keys: object) -> None:
        section = {"enabled": True, **keys}
        columns.check(Config.model_validate({"curate": section}), {"a-00000": chunk})

    chunk = Chunk(str(path), 0, 1)
    check(chunk, where=["score > 0"])
    with pytest.raises(UserError, match=r"^curate.where: .*a.csv has no column 'aesthetic'"):
        check(chunk, where=["aesthetic > 0"])
    with pytest.raises(UserError, match=r"^curate.where: images on disk have no columns"):
        check(Chunk("listing", 0, 1, "identity"), where=["score > 0"])
    check(Chunk("listing", 0, 1, "identity"), where=["score > 0"], columns=[str(path)])
    with pytest.raises(UserError, match=r"^curate.columns: .*a.csv has no column 'sha256'"):
        check(chunk, where=["score > 0"], columns=[str(path)], key="sha256")
    with pytest.raises(UserError, match=r"^curate.columns: .*no-such-\*.csv"):
        check(chunk, where=["score > 0"], columns=[str(tmp_path / "no-such-*.csv")])
    # What is off is not looked at.
    columns.check(Config.model_validate({"curate": {"where": ["x > 0"]}}), {"a-00000": chunk})


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValidationError, match="columns: no condition asks for them"):
        Curate(columns=["a.csv"])
    with pytest.raises(ValidationError, match=r"curate.enabled: own labels"):
        Config.model_validate(
            {"curate": {"enabled": True}, "label": {"labels": ["l.npy"]},
             "train": {"center_init": "random"}}
        )  # fmt: skip


def test_a_run_that_is_not_curated_has_the_config_of_releases_without_it() -> None:
    assert "curate" not in Config().to_yaml()
    assert "curate" in Config.model_validate({"curate": {"enabled": True}}).to_yaml()

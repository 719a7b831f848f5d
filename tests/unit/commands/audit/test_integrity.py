"""Edits of a lock that the identity is not of: what verify asks for is not theirs to say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from helpers.exported_runs import write_run
from helpers.report_stores import CHUNKS, Stores
from mlcd import cli
from mlcd.commands.audit import integrity
from mlcd.commands.audit import lock as locks
from mlcd.commands.audit.nodes import SEALED
from mlcd.utils.records import read_csv, read_record, write_csv, write_record

TAR = f"images/{CHUNKS[0]}/00000.tar"


@pytest.fixture
def results(tmp_path) -> Path:
    folder = tmp_path / "results"
    Stores(folder)
    for name in (".snakemake", "ablate", "report"):
        (folder / name).rename(tmp_path / name)
    assert cli.main(["audit", "seal", str(folder)]) == 0
    return folder


def edit(results: Path, **changes: object) -> str:
    """Change the lock's node of a tar, with its checksum; return the identity, which stays."""
    lock = read_record(results / locks.LOCK, "audit")
    lock["files"][TAR] |= changes
    write_record(results / locks.LOCK, lock)
    assert locks.root_of(lock) == lock["root"]
    return str(lock["root"])


def test_a_lock_does_not_say_which_files_are_hashed(results, capsys):
    root = edit(results, of=SEALED)
    data = bytearray((results / TAR).read_bytes())
    data[600] ^= 1
    (results / TAR).write_bytes(bytes(data))
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(["audit", "verify", str(results), "--bytes", "--identity", root])
    assert end.value.code == 1
    assert f"{TAR}: is not of the kind that the lock says" in capsys.readouterr().out


def test_files_that_were_never_sealed_are_named(results, capsys):
    lock = read_record(results / locks.LOCK, "audit")
    (results / "export" / "timm").mkdir(parents=True)
    (results / "export" / "timm" / "modeling.py").write_text("")
    write_record(results / locks.LOCK, {**lock, "not_locked": ["export/timm/modeling.py"]})
    capsys.readouterr()
    assert cli.main(["audit", "verify", str(results), "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert notes == ["export/timm/modeling.py: of no stage, so nothing is said of it"]


def test_folders_that_are_links_to_another_disk_hold(results, tmp_path):
    for name in ("images", "labels"):
        there = (results / name).rename(tmp_path / f"disk-{name}")
        (results / name).symlink_to(there, target_is_directory=True)
    (results / "labels" / "loop").symlink_to(results, target_is_directory=True)
    assert cli.main(["audit", "verify", str(results), "--bytes"]) == 0


def test_a_pipe_in_the_place_of_a_file_is_found(results, capsys):
    for name in (TAR, f"images/{CHUNKS[0]}/manifest.json"):
        (results / name).unlink()
        os.mkfifo(results / name)
    with pytest.raises(SystemExit) as end:
        cli.main(["audit", "verify", str(results), "--bytes"])
    assert end.value.code == 1
    assert f"{TAR}: missing" in capsys.readouterr().out


def test_a_summary_that_is_no_number_is_not_its_score(tmp_path):
    write_run(tmp_path)
    files = ["evaluate/trained.json", "evaluate/summary.csv"]
    assert not list(integrity.summary(tmp_path, files))
    rows = read_csv(tmp_path / files[1], "evaluate")
    row = next(row for row in rows if row["model"] == "trained")
    row["value"] = "nan"
    write_csv(tmp_path / files[1], list(rows[0]), [list(one.values()) for one in rows])
    (found,) = integrity.summary(tmp_path, files)
    assert row["metric"] in found.what

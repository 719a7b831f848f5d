"""Edits of a lock that the identity is not of: what verify asks for is not theirs to say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.report_stores import CHUNKS, Stores
from mlcd import cli
from mlcd.commands.audit import lock as locks
from mlcd.commands.audit.nodes import SEALED
from mlcd.utils.records import read_record, write_record

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

"""Hashes of code that are kept between processes: right after any change, and never needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mlcd
from mlcd.utils.fingerprint import Code

_ASK = "from mlcd.utils.fingerprint import code_hash; print(code_hash('label'))"


@pytest.fixture
def root(tmp_path):
    copy = tmp_path / "mlcd"
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(Path(mlcd.__file__).parent, copy, ignore=ignored))


def asked(root: Path, **environment: str) -> str:
    """Return what a process of its own says that the hash of `label` is."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", _ASK],
        env={**inherited, "PYTHONPATH": str(root.parent), **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_a_kept_hash_is_taken_until_a_byte_changes(root):
    kept = root / "__pycache__" / "code_hashes.json"
    first = asked(root)
    assert first == Code(root).hash("label")
    # It is really taken from there.
    value = json.loads(kept.read_text())
    kept.write_text(json.dumps({**value, "stages": {"label": "kept"}}))
    assert asked(root) == "kept"
    source = root / "stages" / "label" / "nearest.py"
    source.write_text(source.read_text() + "\n# a remark\n")
    assert asked(root) == first
    source.write_text(source.read_text().replace(" + 1", " + 2", 1))
    assert asked(root) == Code(root).hash("label")


@pytest.mark.parametrize("text", ["", "[]", '{"package": 1}', '{"stages": {}}', "\x00"])
def test_a_damaged_file_is_ignored(root, text):
    kept = root / "__pycache__" / "code_hashes.json"
    kept.parent.mkdir()
    kept.write_text(text)
    assert asked(root) == Code(root).hash("label")


def test_nothing_is_kept_where_python_keeps_no_bytecode(root):
    assert asked(root, PYTHONDONTWRITEBYTECODE="1") == Code(root).hash("label")
    assert not (root / "__pycache__").exists()

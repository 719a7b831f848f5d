"""Hashes of code that are kept between processes: right after any change, and never needed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mlcd
from mlcd.utils.fingerprint import kept
from mlcd.utils.fingerprint.code import Code

_ASK = "from mlcd.utils.fingerprint import code_hash; print(code_hash('label'))"


@pytest.fixture
def root(tmp_path):
    copy = tmp_path / "mlcd"
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(Path(mlcd.__file__).parent, copy, ignore=ignored))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def asked(root: Path, cache: Path, **environment: str) -> str:
    """Return what a process of its own says that the hash of `label` is."""
    done = subprocess.run(
        [sys.executable, "-c", _ASK],
        env={**os.environ, "PYTHONPATH": str(root.parent), "XDG_CACHE_HOME": str(cache)}
        | environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def kept_in(cache: Path) -> Path:
    """Return the one file that is kept."""
    [file] = cache.rglob("*.json")
    return file


def test_a_kept_answer_is_taken_until_a_byte_changes(root, cache):
    first = asked(root, cache)
    assert first == Code(root).hash("label")
    # It is really taken from there.
    file = kept_in(cache)
    value = json.loads(file.read_text())
    del value["checksum"]
    value["hash"] = "kept"
    checksum = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps({**value, "checksum": checksum}))
    assert asked(root, cache) == "kept"
    source = root / "stages" / "label" / "nearest.py"
    source.write_text(source.read_text() + "\n# a remark\n")
    assert asked(root, cache) == first
    source.write_text(source.read_text().replace(" + 1", " + 2", 1))
    assert asked(root, cache) == Code(root).hash("label")


def test_a_damaged_file_is_written_again(root, cache):
    first = asked(root, cache)
    file = kept_in(cache)
    whole = file.read_text()
    for text in ("", "[]", "1", "{}", "\x00", whole[:-9], whole.replace(first, "0" * 16)):
        file.write_text(text)
        assert asked(root, cache) == first
        assert file.read_text() == whole


def test_the_answer_is_the_same_where_nothing_can_be_kept(root, cache):
    cache.write_text("a file")
    assert asked(root, cache) == Code(root).hash("label")
    # Neither a home nor a path that counts.
    assert asked(root, Path("relative"), HOME="/dev/null") == Code(root).hash("label")
    assert not (root.parent / "relative").exists()


def test_few_states_of_the_code_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(kept._STATES + 5):
        package = tmp_path / "packages" / str(number)
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"x = {number}")
        value = {"stage": "label", "hash": str(number), "modules": {}}
        assert kept.answer(package, "label", lambda value=value: value) == value
    assert len(list(kept.folder().iterdir())) == kept._STATES
    # The newest one is there, the first one is asked again.
    assert kept.answer(package, "label", dict) == value
    assert kept.answer(tmp_path / "packages" / "0", "label", lambda: {"asked": 1}) == {"asked": 1}

"""Fixtures of the unit tests."""

import shutil
from pathlib import Path

import pytest

import mlcd


@pytest.fixture
def package_copy(tmp_path):
    """A copy of the package, to be edited; returns its folder."""
    root = tmp_path / "copy" / "mlcd"
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(Path(mlcd.__file__).parent, root, ignore=ignored))

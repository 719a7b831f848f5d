"""The pinned packages can be installed on every Python that the README names."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

CONSTRAINTS = Path(__file__).parents[2] / "constraints" / "cpu.txt"
#: Debian 12's own Python, an older patch release than most have, and the newest that we take.
PYTHONS = ("3.11.2", "3.12.3")


def pinned() -> list[str]:
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return [Requirement(line).name for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("python", PYTHONS)
def test_no_pinned_package_refuses_a_python_that_we_take(python):
    refused = []
    for name in pinned():
        try:
            wanted = metadata.metadata(name).get("Requires-Python") or ""
        except metadata.PackageNotFoundError:
            continue  # of another platform
        if python not in SpecifierSet(wanted):
            refused.append(f"{name} wants {wanted}")
    assert len(pinned()) > 50
    assert not refused

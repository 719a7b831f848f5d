"""A finished run of the real workflow, and copies of it to change."""

from __future__ import annotations

import shutil

import pytest

from helpers.checkout import Checkout, serving


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A checkout whose workflow has run to the end."""
    base = tmp_path_factory.mktemp("run")
    checkout = Checkout(base / "checkout")
    with serving(base / "site") as url:
        checkout.write_images(url, base / "site")
        done = checkout.snakemake("--cores", "2")
    assert done.returncode == 0, done.stdout[-6000:]
    checkout.said = done.stdout
    return checkout


@pytest.fixture
def changed(finished, tmp_path):
    """A copy of the finished checkout, times kept, that a test may change."""
    copy = tmp_path / "checkout"
    shutil.copytree(finished.folder, copy, symlinks=True)
    again = object.__new__(Checkout)
    again.folder = copy
    return again

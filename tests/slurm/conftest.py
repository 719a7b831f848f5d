"""Tests on a real Slurm cluster: run them by `make test-slurm`; elsewhere they are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import Cluster

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip(reason="needs the Slurm test cluster: make test-slurm")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            if Cluster.here() is None:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def cluster():
    """The running cluster, its nodes all idle at the session's start."""
    return Cluster.here()

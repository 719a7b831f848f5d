"""A hostile server for the runs of stage download."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.hostile_server import HostileServer


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    patch = pytest.MonkeyPatch()
    patch.setenv("no_proxy", "127.0.0.1")
    with HostileServer() as running:
        yield running
    patch.undo()

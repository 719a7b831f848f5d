"""Settings of all tests: one thread a library, no network look-ups at import, a fresh logger."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from mlcd.progress import LOGGER


@pytest.fixture(autouse=True)
def fresh_logger():
    """Drop the handlers that a program left: they hold a stream that pytest closes."""
    yield
    LOGGER.handlers.clear()

"""Settings of all tests: one thread per library, no network look-ups at import, a fresh logger."""

import os
import signal

# A shell has what runs in its background ignore Ctrl-C, and so would all programs under test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# This machine may be a cluster's. Its Slurm is not to be asked, but by the tests of a cluster of
# their own (tests/slurm/cluster.py run).
if "MLCD_SLURM_FOLDER" not in os.environ:
    # An empty file is an error at once; for one that is missing the clients wait a minute.
    os.environ["SLURM_CONF"] = os.devnull

import pytest

from mlcd.utils.logging import LOGGER


@pytest.fixture(autouse=True)
def fresh_logger():
    """Drop the handlers that a program left: they hold a stream that pytest closes."""
    yield
    LOGGER.handlers.clear()

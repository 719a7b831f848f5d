"""One small run and its index for all tests that only look."""

import pytest
import torch

from helpers.explore_runs import NO_ENCODER, ExploreRun, opened, served


@pytest.fixture(scope="package")
def explored(tmp_path_factory):
    """A run without an encoder."""
    return ExploreRun(tmp_path_factory.mktemp("explore") / "results", identity=NO_ENCODER)


@pytest.fixture(scope="package")
def looked(explored, tmp_path_factory):
    """Its index, answers and thumbnails."""
    return opened(explored.results, tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="package")
def server(explored, tmp_path_factory):
    """It, served."""
    with served(explored.results, tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture(scope="package")
def encoded(tmp_path_factory):
    """A run whose embeddings are of a tiny CLIP with a text tower, and what it answers."""
    torch.set_num_threads(1)
    run = ExploreRun(tmp_path_factory.mktemp("encoded") / "results")
    return run, opened(run.results, tmp_path_factory.mktemp("index"))[2]

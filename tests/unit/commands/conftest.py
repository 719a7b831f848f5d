"""Images and encoders for `mlcd encode` and `mlcd search`."""

import pytest
import torch

from helpers.searches import write_images, write_models


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A trained encoder with its export, and another encoder."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images in three folders, some of which are none."""
    return write_images(tmp_path_factory.mktemp("images"))

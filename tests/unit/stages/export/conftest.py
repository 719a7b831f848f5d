"""Tests of models compute on one thread; open_clip knows the tiny model."""

import pytest
import torch

from helpers.open_clip_tiny import register


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    register()

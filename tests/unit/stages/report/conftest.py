"""One small run's stores, which every page of the report is drawn from."""

import pytest

from helpers.report_stores import Stores


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return Stores(tmp_path_factory.mktemp("run"))

"""The model that all tests of paging share."""

from __future__ import annotations

import pytest
from paging.paged_model import Model, make


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Not to be written to."""
    return make(tmp_path_factory.mktemp("paging"))

"""One small vocabulary for all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from grammar.scripted_model import Speaker


@pytest.fixture(scope="session")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Speaker]:
    speaker = Speaker(tmp_path_factory.mktemp("vocabulary"))
    yield speaker
    speaker.grammars.close()

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from checkpoints import Checkpoints


@pytest.fixture
def copy(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """A converted model that may be damaged."""
    return Path(shutil.copytree(checkpoints.converted("small"), tmp_path / "model"))

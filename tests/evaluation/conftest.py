from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from checkpoints import Checkpoints


@pytest.fixture
def short_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the tokens, which still close a row of 128 and are cut before and after it."""
    monkeypatch.setattr("dsv4_mlx.evaluation.long_run.CUT_TOKENS", 140)
    monkeypatch.setattr("dsv4_mlx.evaluation.long_run.CHUNKS", (97, 131))


@pytest.fixture
def copy(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """A converted model that may be damaged."""
    return Path(shutil.copytree(checkpoints.converted("small"), tmp_path / "model"))

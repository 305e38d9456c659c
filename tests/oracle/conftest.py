"""Checkpoints of the goldens, written and decoded once per test run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from oracle import goldens
from oracle.numpy_model import Numerics, NumpyModel
from oracle.official import OfficialCheckpoint

Array = NDArray[Any]


@dataclass(frozen=True)
class Loaded:
    golden: goldens.Golden
    checkpoint: OfficialCheckpoint
    weights: dict[str, Array]

    def model(self, numerics: Numerics = "exact", dtype: type[np.floating[Any]] = np.float64) -> NumpyModel:
        return NumpyModel(self.golden.config, self.weights, numerics, dtype)


class Library:
    """Cases by name, loaded at first use."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache
        self.loaded: dict[str, Loaded] = {}

    def __getitem__(self, name: str) -> Loaded:
        if name not in self.loaded:
            golden = goldens.load(name)
            source = OfficialCheckpoint(goldens.checkpoint(golden, self.cache))
            self.loaded[name] = Loaded(golden, source, {key: source[key] for key in source})
        return self.loaded[name]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(tmp_path_factory.mktemp("checkpoints"))

"""Kernels are compiled once for all tests here: a child that compiles may take seconds on a busy machine."""

from __future__ import annotations

import os

import mlx.core as mx
import pytest
from checking.scripted import sound
from checking.test_choose import KERNELS, TESTS
from mlx.utils import tree_flatten

from dsv4_mlx.kernels import ALL


@pytest.fixture(scope="session", autouse=True)
def compiled(home: object) -> None:
    for op in ALL:
        if op.name in KERNELS:
            for case in op.cases():
                result = op.call(sound, *case.arguments, **case.options)
                mx.eval([a for _, a in tree_flatten(result) if isinstance(a, mx.array)])


@pytest.fixture(autouse=True)
def children_find_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(TESTS), os.environ.get("PYTHONPATH", ""))))

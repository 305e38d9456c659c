"""Kernels are compiled once for all tests here: a child that compiles may take seconds on a busy machine."""

from __future__ import annotations

import os

import mlx.core as mx
import pytest
from ops.selftest.scripted import SMALL, sound
from ops.selftest.test_choose import KERNELS, TESTS

from dsv4_mlx.ops.kernels import ALL
from dsv4_mlx.ops.selftest.judge import arrays
from dsv4_mlx.ops.selftest.true_cases import true_cases


@pytest.fixture(scope="session", autouse=True)
def compiled(home: object) -> None:
    for op in ALL:
        if op.name in KERNELS:
            cases = true_cases(op.name, SMALL)
            for case in (*cases.compared, *cases.timed):
                mx.eval(arrays(op.call(sound, *case.arguments, **case.options)))


@pytest.fixture(autouse=True)
def children_find_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(TESTS), os.environ.get("PYTHONPATH", ""))))

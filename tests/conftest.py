"""What every test gets: reproducible random numbers, a home folder of its own, models made once per run."""

from __future__ import annotations

import dsv4_mlx  # isort: skip  # noqa: F401 - before MLX, as every program should

import os
import signal
import zlib
from collections.abc import Generator, Iterator
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import Checkpoints
from hypothesis import settings

from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions

# The same examples every run and no time limit per example: a failure is the code's, not the machine's.
settings.register_profile("suite", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("suite")


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # Started in the background by a shell: the programs under test would inherit deafness to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fail-on-skip", action="store_true", help="A skipped test is a failure.")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and item.config.getoption("--fail-on-skip"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and --fail-on-skip was given: {report.longrepr}"
    return report


def pytest_report_header() -> list[str]:
    """What computed the results below: a green run says nothing about ops that were not there to run."""
    device = "Metal" if mx.metal.is_available() else "CPU only"
    return [f"mlx {version('mlx')}, {device}; ops tested: reference"]


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Caches and settings go to a folder of this run: no test reads or writes the user's own."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        for name in [name for name in os.environ if name.startswith("DSV4_")]:
            patch.delenv(name)
        # Kernels compiled for the emulator are found by content: workers share them, and the next run.
        patch.setenv("DSV4_MLX_PROOF_CACHE", str(Path(__file__).parents[1] / "build" / "proof"))
        yield folder


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> int:
    """Random numbers that depend on the test's name only: alone or in any order, it sees the same."""
    seed = zlib.crc32(request.node.nodeid.encode())
    np.random.seed(seed)
    mx.random.seed(seed)
    return seed


@pytest.fixture
def rng(seeded: int) -> np.random.Generator:
    """Random numbers of this test."""
    return np.random.default_rng(seeded)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Small checkpoints by name; written, converted and opened at first use. Not to be written to."""
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def engine(checkpoints: Checkpoints) -> Engine:
    """The model that `demo` builds, opened as the command line opens it."""
    return Engine.open(checkpoints.converted("small"), EngineOptions(context=4096))

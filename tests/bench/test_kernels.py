"""The table of kernels at true sizes: every launch of a step is in it, and its made-up numbers can be run."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ops.kernels.proven import Proven

from bench import kernels
from dsv4_mlx.ops.kernels import ALL
from dsv4_mlx.ops.kernels.launch import Launch


@pytest.fixture(scope="module")
def decode() -> dict[str, Launch]:
    return kernels.examples(4096, "decode")


def test_every_kernel_of_the_step_is_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    counts = kernels.launches(4096, "decode")
    assert {line.split()[0]: int(line.split()[1]) for line in lines[1 : 1 + len(counts)]} == counts
    prefill = kernels.launches(4096, "prefill")
    for op in ALL:
        assert any(name.startswith(op.name) or op.name == "shared_ffn" for name in {*counts, *prefill}), (
            op.name
        )


def test_an_unknown_kernel_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.main(["nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: no kernel nothing in this step; it has attend")


@pytest.mark.parametrize(
    "name", ["attend", "attend_join", "index_select_best", "route", "route_hashed", "latents", "hc_post"]
)
def test_made_up_numbers_can_be_run(name: str, decode: dict[str, Launch]) -> None:
    machine = Proven(check=False)
    taken = kernels.seconds(decode[name], machine, repeats=1)
    assert taken > 0 and len(machine.launches) == 2
    for result in machine.results:
        for i, shape in enumerate(decode[name].shapes):
            assert result.values(i).size == math.prod(shape)
            assert np.isfinite(result.values(i)).all()


def test_made_up_indices_stay_inside(decode: dict[str, Launch]) -> None:
    launch = kernels.filled(decode["attend"])
    inputs = dict(zip(launch.kernel.inputs, launch.inputs, strict=True))
    assert int(np.array(inputs["indices"]).max()) < inputs["compressed"].shape[1]


@pytest.mark.parametrize("name", ["compress", "project", "hc_pre_mix"])
def test_numbers_of_a_call_are_its_own(name: str) -> None:
    """Lengths and places are never made up: they would point anywhere."""
    launch = kernels.examples(4096, "prefill").get(name) or kernels.examples(4096, "decode")[name]
    at = launch.kernel.inputs.index("uniforms")
    assert kernels.filled(launch).inputs[at] is launch.inputs[at]

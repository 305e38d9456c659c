"""What the check compiles against what the true model launches: every release, recipe and numerics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from bench.count.shapes import BlankTensors, Recipe
from dsv4_mlx.config import ModelConfig, parse_config
from dsv4_mlx.model.tensors import Routed
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.ops.kernels import ALL
from dsv4_mlx.ops.kernels.launch import Launch
from dsv4_mlx.ops.selftest.model_shape import ModelShape
from dsv4_mlx.ops.selftest.true_cases import true_cases
from dsv4_mlx.ops.table import EXACT, OFFICIAL, Ops, with_kernels
from dsv4_mlx.paging.paged_experts import GroupedRows
from dsv4_mlx.synthetic.configs import Release, release_config

Pipeline = tuple[Any, ...]
DECODE = (
    0,
    1,
    3,
    4,
    7,
    126,
    127,
    128,
    131,
    200,
    255,
    2046,
    2047,
    2048,
    2051,
    4099,
    65_536,
    262_144,
    1_048_000,
)
CHUNKS = (
    *((0, rows) for rows in (2, 3, 4, 5, 7, 8, 16, 17, 128, 512)), (1, 2), (1, 3), (2, 2), (3, 2), (3, 4),
    (130, 5), (126, 2), (100, 5), (127, 3), (140, 7), (256, 2), (256, 3), (300, 16), (512, 16), (512, 17),
    (2500, 2), (2500, 10), (4096, 17), (4096, 512), (65_536, 512),
)  # fmt: skip


FORMATS: dict[Recipe, tuple[str, str]] = {"native": ("mxfp8", "mxfp4"), "4bit": ("affine4", "mxfp4")}


class Pipelines:
    """A launcher that computes nothing and keeps what Metal would have to compile."""

    def __init__(self) -> None:
        self.found: dict[Pipeline, str] = {}
        self.at = ""

    def __call__(self, launch: Launch) -> Sequence[mx.array]:
        inputs = tuple((str(array.dtype), array.size < 8) for array in launch.inputs)
        template = tuple((name, str(value)) for name, value in launch.template)
        self.found.setdefault((launch.kernel.name, template, inputs, tuple(map(str, launch.dtypes))), self.at)
        return [mx.zeros(shape, dtype) for shape, dtype in zip(launch.shapes, launch.dtypes, strict=True)]


def config_of(release: Release) -> ModelConfig:
    """True widths; of the layers as many as have every kind, with a hash table and without."""
    whole = parse_config(json.dumps(release_config(release, true_size=True)), f"release {release}")
    layers = whole.hash_layers + 3
    assert set(whole.kinds[:layers]) == set(whole.kinds)
    return replace(whole, layers=layers, kinds=(*whole.kinds[:layers], *whole.kinds[whole.layers :]))


def of_model(config: ModelConfig, recipe: Recipe) -> dict[Pipeline, str]:
    """Pipeline -> where it was launched first: decode, prefill, all rows' logits, drafts, paged experts."""
    seen = Pipelines()
    for numerics in (OFFICIAL, EXACT):
        model = Transformer(config, BlankTensors(config, recipe), with_kernels(seen), numerics)
        for start, rows in [*((start, 1) for start in DECODE), *CHUNKS]:
            seen.at = f"{recipe}, {numerics.name}: {rows} rows after {start}"
            state = model.new_state()
            state.reserve(start + rows)
            state.length = state.reached = start
            tokens = mx.zeros((1, rows), mx.int32)
            streams = model.streams(tokens, state)
            model.logits(streams)
            if model.drafts:
                model.draft(streams, tokens, state, start)
    paged(with_kernels(seen), config, recipe)
    return seen.found


def paged(ops: Ops, config: ModelConfig, recipe: Recipe) -> None:
    banks = BlankTensors(config, recipe).experts("", lambda *given: given[0].x)
    for rows, chunk in ((1, 1), (2, 2), (16, 16), (17, 17), (512, 512)):
        wanted = np.arange(rows * config.experts_per_token).reshape(1, rows, -1) % config.experts
        x, weights = mx.zeros((1, rows, config.hidden_size), mx.bfloat16), mx.zeros(wanted.shape)
        routed = Routed(x, mx.array(wanted.astype(np.uint32)), weights, mx.zeros(x.shape), chunk)
        for group in ({0}, {0, 1}, set(range(8)), set(range(config.experts))):

            def product(part: Routed) -> mx.array:
                made: mx.array = ops.expert_ffn(
                    part.x,
                    part.ids,
                    part.weights,
                    banks.gate_up,
                    banks.down,
                    10.0,
                    part.shared,
                    chunk=part.rows,
                )
                return made

            GroupedRows(routed, wanted).compute(group, np.arange(config.experts), product)


def of_check(shape: ModelShape) -> set[Pipeline]:
    """No call is one that goes to the reference anyway."""
    seen = Pipelines()
    for op in ALL:
        for case in true_cases(op.name, shape).compared:
            assert op.refuses(*case.arguments, **case.options) is None, f"{op.name}: {case.name}"
            op.call(seen, *case.arguments, **case.options)
    return set(seen.found)


@pytest.mark.parametrize("release", ["flash", "pro"])
@pytest.mark.parametrize("recipe", ["native", "4bit"])
def test_every_pipeline_of_the_model_is_checked(release: Release, recipe: Recipe) -> None:
    config = config_of(release)
    needed, checked = of_model(config, recipe), of_check(ModelShape.of(config, *FORMATS[recipe]))
    missing = {pipeline: at for pipeline, at in needed.items() if pipeline not in checked}
    assert not missing, "\n".join(f"{at}: {pipeline}" for pipeline, at in missing.items())
    assert len(needed) > 60


def test_a_pipeline_that_is_not_checked_is_found() -> None:
    """Of a model half as wide as the check takes it for."""
    config = config_of("flash")
    wide = replace(ModelShape.of(config, *FORMATS["native"]), hidden=8192)
    needed, checked = of_model(config, "native"), of_check(wide)
    names = {pipeline[0] for pipeline in needed if pipeline not in checked}
    assert {"hc_pre_mix", "hc_pre_finish", "hc_head", "hc_post", "project"} <= names

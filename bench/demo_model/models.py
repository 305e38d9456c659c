"""The same checkpoint as several models: converted, unconverted, with bfloat16, without compressed rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from bench.demo_model.float_tensors import FloatTensors
from bench.demo_model.rounding import from_fp4, from_fp8
from dsv4_mlx.checkpoint.inventory import Weight, inventory
from dsv4_mlx.config import ModelConfig
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.model.tensors import Linear
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.ops.reference.attend import attend
from dsv4_mlx.ops.table import NUMERICS, REFERENCE, Ops
from dsv4_mlx.ops.types import AttendedRows
from dsv4_mlx.tokenizer.template import Prompts
from dsv4_mlx.weights.load import find_model, open_model

CONTEXT = 8192
DTYPES = {"F32": "<f4", "I64": "<i8", "BF16": "<u2", "F8_E4M3": "u1", "F8_E8M0": "u1", "I8": "u1"}
Values = dict[str, mx.array]


def read_official(folder: Path) -> Values:
    """Every weight of an official folder, decoded with this folder's own code and not the converter's."""
    raw: dict[str, npt.NDArray[np.generic]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + size]).items():
            if name != "__metadata__":
                a, b = (8 + size + offset for offset in entry["data_offsets"])
                raw[name] = np.frombuffer(data[a:b], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return {w.name: mx.array(_decoded(w, raw)) for w in inventory(ModelConfig.read(folder)).weights()}


def _decoded(weight: Weight, raw: dict[str, npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
    stored = raw[weight.name]
    if weight.form == "raw":
        if stored.dtype == np.uint16:
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.int32) if stored.dtype == np.int64 else stored
    codes, scales = stored.astype(np.uint8), raw[weight.scale_name].astype(np.uint8)
    return from_fp8(codes, scales) if weight.form == "fp8" else from_fp4(codes, scales)


class Bfloat16Tensors(FloatTensors):
    """Activations and matrices in bfloat16, as on Metal; what must be float32 stays so."""

    @property
    def dtype(self) -> mx.Dtype:
        return mx.bfloat16

    def linear(self, name: str, shape: tuple[int, int]) -> Linear:
        return Linear(super().linear(name, shape).weight.astype(mx.bfloat16))

    def float_linear(self, name: str, shape: tuple[int, int]) -> Linear:
        return super().linear(name, shape)


def _float_experts(x: mx.array, *rest: Any, **more: Any) -> mx.array:
    """MLX multiplies gathered matrices in float32 only on the CPU; what goes in has been rounded."""
    return REFERENCE.expert_ffn(x.astype(mx.float32), *rest, **more)


def _near_only(
    q: mx.array, window: AttendedRows, compressed: AttendedRows | None, sinks: mx.array, inverse: mx.array
) -> mx.array:
    return attend(q, window, None, sinks, inverse)


# The compressed branch cut off: every layer sees its window and nothing else.
WINDOW_ONLY: Ops = replace(REFERENCE, attend=_near_only, name="window only")


def converted(folder: Path, ops: Ops = REFERENCE, numerics: str = "official") -> Engine:
    """A converted folder as the product opens it, with other ops where a comparison asks for them."""
    opened = open_model(find_model(folder), ops, NUMERICS[numerics])
    prompts = Prompts(folder, opened.manifest.checkpoint)
    return Engine(opened.config, opened.manifest, opened.model, prompts, CONTEXT)


def floats(
    values: Values, like: Engine, source: type[FloatTensors] = FloatTensors, numerics: str = "official"
) -> Engine:
    """Plain weights, unconverted, behind the same engine."""
    ops = replace(REFERENCE, expert_ffn=_float_experts)
    model = Transformer(like.config, source(values), ops, NUMERICS[numerics])
    model.eval()
    mx.eval(dict(model))
    return Engine(like.config, like.manifest, model, like.prompts, CONTEXT)

"""mlx-vlm's deepseek_v4 at the same size, counted the same way. Needs the optional group `peer`."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import mlx.core as mx
from mlx.utils import tree_unflatten

from bench.count.fusion import recorded
from bench.count.ours import Step, named, whole_step
from bench.count.shapes import blank
from bench.count.trace import as_on_metal, trace


def version() -> str | None:
    """The installed mlx-vlm, None without one."""
    try:
        return importlib.metadata.version("mlx-vlm")
    except importlib.metadata.PackageNotFoundError:
        return None


@contextmanager
def _a_mac() -> Iterator[None]:
    """Modules that ask whether there is Metal, when imported and when called, are told that there is."""
    with (
        mock.patch.object(mx.metal, "is_available", lambda: True),
        mock.patch.object(mx, "default_device", lambda: mx.gpu),
    ):
        yield


def trace_peer(config: dict[str, Any], *, context: int, rows: int) -> tuple[Step, int]:
    """As `trace_ours`, and the dispatches that its `mx.compile` saves. config: the official config.json."""
    with _a_mac(), as_on_metal(), recorded() as calls:
        model = _model(config)
        caches = model.make_cache()
        fields = [field for cache in caches for field in _fill(cache, config, context)]
        names, weights = zip(*named(model), strict=True)

        def step(tokens: mx.array, *arrays: mx.array) -> list[mx.array]:
            for (owner, name), array in zip(fields, arrays, strict=False):
                setattr(owner, name, array)
            model.update(tree_unflatten(list(zip(names, arrays[len(fields) :], strict=True))))
            logits = model(tokens, cache=caches).logits
            return [logits[:, -1], *(getattr(owner, name) for owner, name in fields)]

        arguments = [mx.zeros((1, rows), mx.int32), *(getattr(o, n) for o, n in fields), *weights]
        graph = trace(step, arguments)
    return whole_step(graph, len(fields), config["n_routed_experts"], list(names)), calls.saved()


def _model(config: dict[str, Any]) -> Any:
    from mlx.nn.layers.quantized import quantize
    from mlx_vlm.models.deepseek_v4.config import ModelConfig
    from mlx_vlm.models.deepseek_v4.language import LanguageModel

    model = LanguageModel(ModelConfig.from_dict(config | {"compress_ratios": _ratios(config)}))
    keep_wide = model.cast_predicate
    wide = {name: array for name, array in named(model) if not keep_wide(name)}
    model.eval()
    model.set_dtype(mx.bfloat16)
    model.update(tree_unflatten(list(wide.items())))
    stored = _as_stored(model)
    quantize(model, class_predicate=lambda path, module: stored(path, module))
    return model


def _as_stored(model: Any) -> Any:
    """Quantise what its loader finds quantised in the official checkpoint, and nothing else."""
    formats = model.quant_predicate

    def predicate(path: str, module: Any) -> Any:
        chosen = formats(path, module)
        return chosen if hasattr(module, "to_quantized") and isinstance(chosen, dict) else False

    return predicate


def _ratios(config: dict[str, Any]) -> list[int]:
    return list(config["compress_ratios"][: config["num_hidden_layers"]])


def _fill(cache: Any, config: dict[str, Any], context: int) -> Iterator[tuple[Any, str]]:
    """Give a layer's cache the shapes it has after `context` tokens; yields where its arrays are."""
    parts = getattr(cache, "caches", (cache,))
    window, pools = parts[0], parts[1:]
    rows = min(context, config["sliding_window"])
    window.keys = blank((1, 1, rows, config["head_dim"]), mx.bfloat16)
    window.values = blank((1, 1, rows, 0), mx.bfloat16)
    window.offset, window._idx = context, context % rows if context > rows else rows
    yield window, "keys"
    for pool, width in zip(pools, (config["head_dim"], config["index_head_dim"]), strict=False):
        ratio = pool.ratio
        pool.remainder = context % ratio
        pool.buf_kv = blank((1, ratio, width * (2 if ratio == 4 else 1)), mx.bfloat16)
        pool.buf_gate = blank(pool.buf_kv.shape, mx.bfloat16)
        pool.pooled = blank((1, context // ratio, width), mx.bfloat16)
        for name in ("buf_kv", "buf_gate", "pooled"):
            yield pool, name

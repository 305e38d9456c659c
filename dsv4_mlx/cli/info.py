"""dsv4-mlx info"""

from __future__ import annotations

import json
from typing import Any

from dsv4_mlx.cli.console import size, table
from dsv4_mlx.cli.options import JsonOption, ModelArgument, model_folder

CONTEXTS = (4096, 32_768, 131_072, 1_048_576)


def info(model: ModelArgument, as_json: JsonOption = False) -> None:
    """Show a model: architecture, recipe, bytes per component, memory by context length.

    Example: dsv4-mlx info ~/models/flash
    """
    found = facts(model)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    shape = found["architecture"]
    print(
        f"DeepSeek V4 ({found['checkpoint']}), recipe {found['recipe']}: "
        f"{shape['layers']} layers "
        f"({shape['window_only']} window, {shape['csa']} CSA, {shape['hca']} HCA), "
        f"{shape['experts']} experts, "
        f"{shape['experts_per_token']} a token, width {shape['hidden_size']}, "
        f"vocabulary {shape['vocab_size']}"
    )
    total = found["bytes"]["total"]
    rows = [
        (name, size(count), f"{count / total:.1%}") for name, count in found["bytes"]["components"].items()
    ]
    table("weights", ("component", "stored", "share"), [*rows, ("total", size(total), "100.0%")])
    table(
        "memory of one conversation",
        ("context", "state", "with weights"),
        [(f"{e['context']:,}", size(e["state"]), size(e["total"])) for e in found["memory"]],
    )
    print(
        f"rows are {found['row_format']} here; "
        f"the state grows by {found['bytes_per_token']:.0f} bytes a token"
    )


def facts(model: str) -> dict[str, Any]:
    """Everything `info` shows, as plain values."""
    from dsv4_mlx.config import ModelConfig
    from dsv4_mlx.engine.memory import component_bytes, state_bytes
    from dsv4_mlx.manifest import read_manifest
    from dsv4_mlx.weights.load import activation_dtype, tensor_bytes

    folder = model_folder(model)
    manifest, config = read_manifest(folder), ModelConfig.read(folder)
    components = component_bytes(manifest, tensor_bytes(folder, manifest))
    total, dtype = sum(components.values()), activation_dtype()
    contexts = sorted({min(context, config.max_context) for context in CONTEXTS})
    states = {context: state_bytes(config, context, dtype.size) for context in contexts}
    return {
        "folder": str(folder),
        "checkpoint": manifest.checkpoint,
        "recipe": manifest.recipe,
        "architecture": {
            "layers": config.layers,
            "window_only": config.ratios.count(0),
            "csa": config.ratios.count(4),
            "hca": config.ratios.count(128),
            "draft_blocks": config.mtp_layers,
            "hidden_size": config.hidden_size,
            "vocab_size": config.vocab_size,
            "heads": config.heads,
            "head_dim": config.head_dim,
            "window": config.window,
            "index_topk": config.index_topk,
            "experts": config.experts,
            "experts_per_token": config.experts_per_token,
            "hash_layers": config.hash_layers,
            "max_context": config.max_context,
        },
        "bytes": {"components": components, "total": total},
        "row_format": str(dtype).removeprefix("mlx.core."),
        "bytes_per_token": next(iter(states.values())).per_token,
        "memory": [
            {"context": context, "state": state.total, "total": state.total + total}
            for context, state in states.items()
        ],
    }

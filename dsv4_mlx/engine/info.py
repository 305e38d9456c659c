"""Facts about a model that need no weights in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsv4_mlx.checkpoint.inventory import inventory
from dsv4_mlx.config import CSA, HCA, WINDOW, ModelConfig
from dsv4_mlx.engine.memory import DRAFT, component_bytes, repeated_scales, state_bytes
from dsv4_mlx.weights.load import activation_dtype, find_model
from dsv4_mlx.weights.stored import StoredModel

CONTEXTS = (4096, 32_768, 131_072, 1_048_576)


def check(folder: Path) -> StoredModel:
    """The model that the folder holds, by manifest or headers. Raises InputError, MachineError."""
    return find_model(folder)


def kernel_facts(folder: Path) -> tuple[ModelConfig, str, str]:
    """What decides which kernels a model runs: its config, the formats of its matrices and of its experts.

    Raises as `check`.
    """
    stored = find_model(folder)
    matrix = stored.manifest.tensors.get("layers.0.attn.wo_a.weight")
    linear = "mxfp8" if matrix is None or matrix.format == "raw" else matrix.format
    expert = next((table.format for table in stored.manifest.experts.values()), "mxfp4")
    return stored.config, linear, expert


def vocabulary(folder: Path) -> int:
    """Tokens the model knows. Raises as `check`."""
    return find_model(folder).config.vocab_size


def trunk(config: ModelConfig) -> list[tuple[int, ...]]:
    """The shape of every weight that a token goes through: drafts and tables of ids left out."""
    whole = inventory(config)
    weights = [whole.embed, *(weight for block in whole.layers for weight in block.all()), *whole.head]
    return [weight.shape for weight in weights if not weight.name.endswith("tid2eid")]


def facts(folder: Path) -> dict[str, Any]:
    """What `dsv4-mlx info` shows of a model, as plain values. Raises InputError."""
    stored = find_model(folder)
    manifest, config = stored.manifest, stored.config
    components = component_bytes(stored.tensor_bytes(), stored.expert_bytes())
    total, dtype = sum(components.values()), activation_dtype()
    weights = total + repeated_scales(manifest)
    if config.drafter is not None:  # stored, not run
        weights -= components[DRAFT]
    contexts = sorted({min(context, config.max_context) for context in CONTEXTS})
    states = {context: state_bytes(config, context, dtype.size) for context in contexts}
    return {
        "folder": str(folder),
        "checkpoint": manifest.checkpoint,
        "recipe": manifest.recipe,
        "architecture": {
            "layers": config.layers,
            "window_only": config.kinds.count(WINDOW),
            "csa": config.kinds.count(CSA),
            "hca": config.kinds.count(HCA),
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
            {"context": context, "state": state.total, "total": state.total + weights}
            for context, state in states.items()
        ],
    }

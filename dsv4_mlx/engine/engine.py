"""One open model: weights in memory, sessions made from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import mlx.core as mx

from dsv4_mlx.chat.prompt import Prompts
from dsv4_mlx.config import ModelConfig
from dsv4_mlx.engine.machine import memory_limit
from dsv4_mlx.engine.memory import largest_context, state_bytes, workspace
from dsv4_mlx.engine.session import Session
from dsv4_mlx.errors import DoesNotFit, UsageError
from dsv4_mlx.manifest import Manifest
from dsv4_mlx.model.state import GROWTH
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.ops import NUMERICS, REFERENCE
from dsv4_mlx.platforms import check_supported
from dsv4_mlx.weights.load import activation_dtype, find_model, open_model

CACHE_LIMIT = 256 << 20  # freed buffers MLX may keep for reuse: enough for a step, too little to grow


@dataclass(frozen=True)
class EngineOptions:
    """How to open a model. context None: the largest that fits, at most 131072."""

    context: int | None = None
    numerics: Literal["official", "exact"] = "official"


class Engine:
    """A model, its tokenizer and its limits; immutable once open."""

    def __init__(
        self, config: ModelConfig, manifest: Manifest, model: Transformer, prompts: Prompts, context: int
    ):
        self.config, self.manifest, self.model = config, manifest, model
        self.prompts, self.context = prompts, context

    @staticmethod
    def open(
        folder: Path, options: EngineOptions | None = None, progress: Callable[[int, int], None] | None = None
    ) -> Engine:
        """Open a converted folder or an official checkpoint. Raises Dsv4Error.

        `progress(done, total)` counts bytes.
        """
        check_supported()
        options = options or EngineOptions()
        if options.numerics not in NUMERICS:
            raise UsageError(f"numerics is {options.numerics!r}, expected one of {sorted(NUMERICS)}")
        stored = find_model(folder)
        context = fitting_context(stored.config, stored.manifest, options.context)
        prompts = Prompts(folder, stored.manifest.checkpoint)
        mx.set_cache_limit(CACHE_LIMIT)
        opened = open_model(stored, REFERENCE, NUMERICS[options.numerics], progress)
        return Engine(opened.config, opened.manifest, opened.model, prompts, context)

    def session(self, growth: int = GROWTH) -> Session:
        """A new, empty token sequence, whose row buffers grow by `growth` tokens."""
        return Session(self.model, self.context, self.prompts.markers, growth)


def weight_bytes(manifest: Manifest) -> int:
    """Bytes of the tensors as stored; on the CPU unquantised ones take twice that in memory."""
    return sum(size for name, size in manifest.files.items() if name.endswith(".safetensors"))


def fitting_context(config: ModelConfig, manifest: Manifest, asked: int | None) -> int:
    """The context to use. Raises UsageError for an impossible number, DoesNotFit for one too large."""
    element = activation_dtype().size
    weights, limit = weight_bytes(manifest), memory_limit()
    if asked is not None and not 1 <= asked <= config.max_context:
        raise UsageError(f"--context is {asked}, expected 1 to {config.max_context}")
    context = asked if asked is not None else largest_context(config, weights, limit, element)
    need = weights + workspace(weights) + state_bytes(config, max(context, 1), element).total
    if context == 0 or need > limit:
        raise DoesNotFit(
            f"the model needs {need / 1e9:.1f} GB with a context of {max(context, 1)} tokens, "
            f"this machine allows {limit / 1e9:.1f} GB",
            next="use a smaller --context or a machine with more memory",
        )
    return context

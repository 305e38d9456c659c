"""One open model: weights in memory, which a Mac keeps wired, and sessions made from it.

Unwired memory is paged, or prepared anew for every command.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import mlx.core as mx
import numpy as np

from dsv4_mlx.checkpoint.manifest import Manifest
from dsv4_mlx.config import ModelConfig
from dsv4_mlx.engine.chunking import chunk_ends
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.engine.memory import expert_room, largest_context, repeated_scales, state_bytes, workspace
from dsv4_mlx.engine.session import Logits, Session, check_logits, check_tokens
from dsv4_mlx.errors import DoesNotFit, Dsv4Warning, Progress, UsageError
from dsv4_mlx.machine import mlx_switches, wire_guard
from dsv4_mlx.machine.limits import memory_limit, memory_pressure, others_share, page_cache_share
from dsv4_mlx.machine.support import check_supported
from dsv4_mlx.machine.units import size
from dsv4_mlx.model.state import GROWTH
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.ops.table import NUMERICS
from dsv4_mlx.paging.pager import Pager
from dsv4_mlx.paging.sizing import ExpertMemory, Experts, choose, parse
from dsv4_mlx.tokenizer.template import Prompts
from dsv4_mlx.weights.load import activation_dtype, find_model, open_model

_SLOWER = "memory is not wired, which may be many times slower"


def prepare(mode: Literal["auto", "off"]) -> Wiring | None:
    """What will wire a model that is about to be opened; None where nothing will: off, refused, or no Metal.

    Warns, once in a process, of what is not as it should be.
    """
    if not mx.metal.is_available():
        return None
    mlx_switches.warn_if_late()
    if mode == "off":
        return None
    try:
        guard = wire_guard.this_process()
    except RuntimeError:
        _warn(f"{_SLOWER}: there is no home folder to note in that it began")
        return None
    refusal = guard.refusal()
    if refusal is not None:
        _warn(f"{_SLOWER}: {refusal}")
        return None
    return Wiring(guard)


class Wiring:
    """For one model."""

    def __init__(self, guard: wire_guard.Guard) -> None:
        self._guard, self._failed = guard, False

    def set(self) -> None:
        """Wire what is in memory now. To be called once for a layout of banks, never for an answer: it moves
        every buffer in or out, and macOS was seen to panic where that was done again and again."""
        if self._failed:
            return
        size = min(mx.get_active_memory(), memory_limit())
        try:
            self._guard.begin(size)
            mx.set_wired_limit(size)
        except (OSError, RuntimeError, ValueError) as error:
            self._guard.clear()
            self._failed = True
            _warn(f"{_SLOWER}: {error}")


def _warn(message: str) -> None:
    warnings.warn(message, Dsv4Warning, stacklevel=1)  # one place: the same text is shown once


CACHE_LIMIT = 256 << 20  # freed buffers MLX may keep for reuse: enough for a step, too little to grow


class Engine:
    """A model, its tokenizer and its limits; immutable once open."""

    def __init__(
        self,
        config: ModelConfig,
        manifest: Manifest,
        model: Transformer,
        prompts: Prompts,
        context: int,
        pager: Pager | None = None,
    ):
        self.config, self.manifest, self.model = config, manifest, model
        self.prompts, self.context = prompts, context
        self.pager = pager  # None where all experts are in memory

    @staticmethod
    def open(folder: Path, options: EngineOptions | None = None, progress: Progress | None = None) -> Engine:
        """Open a converted folder or an official checkpoint. Raises Dsv4Error.

        `progress(done, total)` counts bytes.
        """
        check_supported()
        options = options or EngineOptions()
        stored = find_model(folder)
        config, manifest = stored.config, stored.manifest
        context, memory = fitting(config, manifest, options.context, options.expert_memory)
        prompts = Prompts(folder, manifest.checkpoint)
        wiring = prepare(options.wire)
        mx.set_cache_limit(CACHE_LIMIT)
        pager = None
        if memory.resident and options.verify_reads:
            warnings.warn(
                "--verify-reads checks nothing here: all experts are in memory and none is read again; "
                "dsv4-mlx verify MODEL checks every byte",
                Dsv4Warning,
                stacklevel=2,
            )
        if not memory.resident:
            pager = Pager(
                memory,
                options.expert_threads,
                activation_dtype(),
                verify=options.verify_reads,
                sense=memory_pressure,
            )
        opened = open_model(
            stored, options.ops, NUMERICS[options.numerics], progress, pager.paged if pager else None
        )
        if pager is not None:
            pager.attach(opened.model)
            if options.expert_threads is None:
                pager.calibrate()
        if wiring is not None:
            wiring.set()
            if pager is not None:
                pager.resized = wiring.set
        return Engine(config, manifest, opened.model, prompts, context, pager)

    @property
    def expert_memory(self) -> str:
        """How many experts are in memory and why, for people; "" where all are."""
        return "" if self.pager is None else f"experts: {self.pager.memory}"

    def session(self, growth: int = GROWTH) -> Session:
        """A new, empty token sequence, whose row buffers grow by `growth` tokens."""
        return Session(self.model, self.context, self.prompts.markers, growth)


def score(
    engine: Engine,
    tokens: Sequence[int],
    *,
    chunk: int | None = None,
    decode: int = 0,
    progress: Progress | None = None,
) -> Logits:
    """float32 [T, V]: row t holds the logits after token t. The tokens are used as they are.

    The prefill is cut where `generate` cuts it, or at multiples of `chunk`; the last `decode` tokens are
    fed one by one. Raises InputError, DoesNotFit as Session.sync.
    """
    check_tokens(tokens, engine.config.vocab_size, engine.context)
    prefilled = max(0, len(tokens) - decode)
    marks = chunk_ends(tokens, engine.prompts.markers) if chunk is None else range(chunk, len(tokens), chunk)
    ends = [*(mark for mark in marks if mark < prefilled), prefilled, *range(prefilled + 1, len(tokens) + 1)]
    state = engine.model.new_state()
    rows = []
    start = 0
    for end in ends:
        if end > start:
            logits = engine.model(mx.array([list(tokens[start:end])], mx.int32), state)
            mx.eval(logits, *state.arrays())
            rows.append(np.array(logits[0]))
            check_logits(rows[-1], end - 1)
            start = end
            if progress is not None:
                progress(end, len(tokens))
    return np.concatenate(rows)


def weight_bytes(manifest: Manifest) -> int:
    """Bytes of the tensors as stored, and of the scales that are repeated when an official folder is read; on
    the CPU unquantised ones take twice that in memory."""
    stored = sum(size for name, size in manifest.files.items() if name.endswith(".safetensors"))
    return stored + repeated_scales(manifest)


def fitting(
    config: ModelConfig, manifest: Manifest, asked: int | None, expert_memory: str
) -> tuple[int, ExpertMemory]:
    """The context to use, and how many experts are in memory.

    Raises UsageError for an impossible number, DoesNotFit for one too large.
    """
    element, limit, wanted = activation_dtype().size, memory_limit(), parse(expert_memory)
    if asked is not None and not 1 <= asked <= config.max_context:
        raise UsageError(f"--context is {asked}, expected 1 to {config.max_context}")
    experts = routed_experts(config, manifest)
    others = weight_bytes(manifest) - sum(t.count * t.record_bytes for t in manifest.experts.values())
    least = others + experts.bytes(1)
    context = asked if asked is not None else largest_context(config, least, limit, element)
    need = least + workspace(least) + state_bytes(config, max(context, 1), element).session
    if context == 0 or need > limit:
        raise DoesNotFit(
            f"the model needs {size(need)} with a context of {max(context, 1)} tokens, "
            f"this machine allows {size(limit)}",
            next="use a smaller --context or a machine with more memory",
        )
    taken = others_share() if wanted.kind == "auto" else 0
    room, spare = (expert_room(config, others, most, context, element) for most in (limit, limit - taken))
    return context, choose(wanted, experts, room, max(page_cache_share(), taken), spare)


def routed_experts(config: ModelConfig, manifest: Manifest) -> Experts:
    """The routed experts as they are stored."""
    return Experts(
        layers=config.layers,
        count=config.experts,
        each=config.experts_per_token,
        record_bytes=max((table.record_bytes for table in manifest.experts.values()), default=1),
        drafts=config.draft_blocks,
    )

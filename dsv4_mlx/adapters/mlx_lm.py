"""mlx-lm's `perplexity`, `benchmark` and `evaluate` on a converted model.

    python -m dsv4_mlx.adapters.mlx_lm perplexity --model ~/models/flash
    python -m dsv4_mlx.adapters.mlx_lm benchmark --model ~/models/flash --prompt-tokens 512
    python -m dsv4_mlx.adapters.mlx_lm evaluate --model ~/models/flash --tasks arc_easy

MODEL may be a folder, a Hub id already downloaded, or `demo`. `TOOL --help` lists the options. The programs
are mlx-lm's own; `load` below takes the place of its loader, and `batch_generate` that of its batch
generator, which needs caches that can be merged. `perplexity` and `evaluate` download the data they are asked
for; `evaluate` needs the package lm-eval.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
from deepseek_recipe import SpecialToken
from mlx.nn.layers.base import Module
from mlx_lm.generate import BatchResponse, stream_generate
from mlx_lm.generate_utils import BatchStats
from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, TokenizerWrapper
from tokenizers.processors import Sequence as Processors
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from dsv4_mlx.api import resolve
from dsv4_mlx.engine.chunking import EVERY
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.info import trunk
from dsv4_mlx.errors import Dsv4Error, UsageError
from dsv4_mlx.model.state import ModelState
from dsv4_mlx.model.transformer import Transformer

TOOLS = ("perplexity", "benchmark", "evaluate")


class StateCache:
    """The one "cache" of a model: its whole state, made when the batch size is known."""

    def __init__(self) -> None:
        self.held: ModelState | None = None

    @property
    def offset(self) -> int:
        """Tokens seen."""
        return 0 if self.held is None else self.held.length

    @property
    def state(self) -> list[mx.array]:
        """Every array, for mlx-lm to evaluate."""
        return [] if self.held is None else self.held.arrays()

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.state)

    def empty(self) -> bool:
        return self.held is None

    def is_trimmable(self) -> bool:
        """No: eight tokens at most could be taken back, and mlx-lm asks for any number."""
        return False

    def __deepcopy__(self, memo: dict[int, Any]) -> StateCache:
        twin = StateCache()
        twin.held = None if self.held is None else self.held.fork()
        return twin


class CallableModel:
    """The transformer under the names mlx-lm calls: `model(tokens, cache=...)`, `make_cache`, `layers`."""

    def __init__(self, transformer: Transformer) -> None:
        self.transformer = transformer

    @property
    def layers(self) -> list[Any]:
        return list(self.transformer.blocks)

    def make_cache(self) -> list[StateCache]:
        return [StateCache()]

    def __call__(self, tokens: mx.array, cache: Sequence[StateCache] | None = None) -> mx.array:
        """tokens int32 [B, T] -> float32 logits [B, T, V]; rows of a batch are equally long.

        With `cache` they follow what it has seen. Cut at multiples of 512, as everywhere.
        """
        held = None if cache is None else cache[0].held
        state = self.transformer.new_state(batch=tokens.shape[0]) if held is None else held
        if cache is not None:
            cache[0].held = state
        parts = []
        start, total = 0, tokens.shape[1]
        while start < total:
            end = min(total, start + EVERY - state.length % EVERY)
            parts.append(self.transformer(tokens[:, start:end], state))
            mx.async_eval(parts[-1], *state.arrays())
            start = end
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)

    def leaf_modules(self) -> dict[str, Module]:
        """A stand-in with as many parameters as the trunk: mlx-lm would count packed codes wrongly."""
        whole = Module()
        for i, shape in enumerate(trunk(self.transformer.config)):
            whole[f"w{i}"] = mx.broadcast_to(mx.array(0.0), (math.prod(shape[:-1]), shape[-1]))
        return {"whole": whole}


def load(path: str, return_config: bool = False, **ignored: Any) -> tuple[Any, ...]:
    """Open MODEL as mlx_lm.load does: (model, tokenizer) or (model, tokenizer, config).

    mlx-lm's options for its own loader are accepted and mean nothing here. Raises Dsv4Error.
    """
    folder, options = resolve(path)
    engine = Engine.open(folder, options)
    found = CallableModel(engine.model), tokenizer(engine, folder)
    if not return_config:
        return found
    return *found, json.loads((folder / "config.json").read_text(encoding="utf-8"))


def tokenizer(engine: Engine, folder: Path) -> TokenizerWrapper:
    """The folder's tokenizer as mlx-lm wraps it. Special tokens that `encode` adds: the begin of sentence.

    It has no chat template: prompts of conversations are `dsv4-mlx`'s own.
    """
    begin, end = SpecialToken.Bos.default_str(), SpecialToken.Eos.default_str()
    inner = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token=begin, eos_token=end
    )
    first = TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, inner.bos_token_id)])
    inner.backend_tokenizer.post_processor = Processors([inner.backend_tokenizer.post_processor, first])
    return TokenizerWrapper(inner, BPEStreamingDetokenizer, eos_token_ids=[engine.prompts.markers.end])


def batch_generate(
    model: CallableModel,
    tokenizer: TokenizerWrapper,
    prompts: list[list[int]],
    max_tokens: int | list[int] = 128,
    sampler: Callable[[mx.array], mx.array] | None = None,
    verbose: bool = False,
    prefill_step_size: int = 2048,
    **ignored: Any,
) -> BatchResponse:
    """mlx_lm.batch_generate, one prompt after the other. Its sizes of batches mean nothing here."""
    limits = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else max_tokens
    texts, ids = [], []
    stats, started = BatchStats(), time.perf_counter()
    for prompt, limit in zip(prompts, limits, strict=True):
        text, tokens = "", []
        for step in stream_generate(
            model, tokenizer, prompt, limit, sampler=sampler, prefill_step_size=prefill_step_size
        ):
            text += step.text
            tokens.append(step.token)
        texts.append(text)
        ids.append(tokens)
        stats.prompt_tokens += step.prompt_tokens
        stats.prompt_time += step.prompt_tokens / step.prompt_tps
        stats.generation_tokens += step.generation_tokens
        stats.generation_steps += step.generation_tokens
        if verbose:
            print(f"{len(texts)} of {len(prompts)} prompts", file=sys.stderr)
    stats.wall_time = time.perf_counter() - started
    stats.decode_time = stats.generation_time
    stats.peak_memory = mx.get_peak_memory() / 1e9
    return BatchResponse(texts, stats, None, token_ids=ids)


def prepared(tool: str) -> Any:
    """mlx_lm's module `tool` with our loader in place of its own. Raises UsageError."""
    if tool not in TOOLS:
        raise UsageError(f"there is no tool {tool!r}, expected one of {', '.join(TOOLS)}")
    try:
        module: Any = import_module(f"mlx_lm.{tool}")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"mlx_lm.{tool} needs the package {error.name}", next="pip install lm-eval"
        ) from None
    module.load = load
    module.batch_generate = batch_generate
    return module


def main(arguments: list[str]) -> int:
    """Run one of mlx-lm's programs; returns the exit code."""
    if arguments[:1] in (["--help"], ["-h"]):
        print(__doc__)
        return 0
    try:
        if not arguments:
            raise UsageError(f"no tool was named, expected one of {', '.join(TOOLS)}")
        module = prepared(arguments[0])
        sys.argv = [f"mlx_lm.{arguments[0]}", *arguments[1:]]
        module.main()
    except Dsv4Error as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

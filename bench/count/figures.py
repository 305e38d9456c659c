"""The ledger's figures: which steps are counted, and the JSON they become."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.count import peer
from bench.count.command_buffers import Switches, cut
from bench.count.ours import Step, trace_ours, true_config
from bench.count.rules import Count, count, share_of_experts
from bench.count.shapes import Recipe
from dsv4_mlx.config import ModelConfig
from dsv4_mlx.machine.mlx_switches import ELEMENTS, OPERATIONS
from dsv4_mlx.ops.table import EXACT, OFFICIAL, Numerics
from dsv4_mlx.synthetic.configs import release_config

CONTEXTS = (4096, 65536, 1048576)
CHUNK = 512
FIELDS = ("dispatches", "copies", "metadata", "host_syncs", "bytes_weights", "bytes_cache", "bytes_other")
RECORDED = Path(__file__).parents[1] / "results" / "mlx_vlm.json"
# Nothing in a step reads a value back: a trace's placeholders have none to read. The one wait is the
# caller's, for the logits.
HOST_SYNCS = 1

Figures = dict[str, Any]


def figures(counted: Count, saved: int = 0) -> Figures:
    """The fields of one path and step. `saved`: dispatches that fusion takes away."""
    values = asdict(counted) | {"host_syncs": HOST_SYNCS}
    values["dispatches"] -= saved
    return {name: values[name] for name in FIELDS}


def ours(
    config: ModelConfig,
    context: int,
    rows: int,
    numerics: Numerics = OFFICIAL,
    kernels: bool = False,
    recipe: Recipe = "native",
) -> tuple[Count, Step]:
    step = trace_ours(config, context=context, rows=rows, numerics=numerics, kernels=kernels, recipe=recipe)
    return _counted(step, rows, config.experts_per_token), step


def mlx_vlm(context: int, rows: int) -> Figures:
    raw = release_config("flash", true_size=True)
    step, saved = peer.trace_peer(raw, context=context, rows=rows)
    return figures(_counted(step, rows, raw["num_experts_per_tok"]), saved)


def _counted(step: Step, rows: int, chosen: int) -> Count:
    share = share_of_experts(rows, chosen, step.experts)
    return count(step.graph, weights=step.weights, cache=step.cache, chosen=share, launches=step.launches)


def starts(context: int) -> dict[str, tuple[int, int]]:
    """Step -> (tokens before it, its rows): the token after `context`, the chunk that completes `context`."""
    return {"decode": (context, 1), "prefill": (context - CHUNK, CHUNK)}


def ledger(contexts: tuple[int, ...] = CONTEXTS) -> Figures:
    """Every figure. mlx-vlm's are counted where it is installed and read from RECORDED elsewhere."""
    config = true_config()
    recorded = peer_figures(contexts)
    buffers = [one for context in contexts for one in command_buffers(config, context)]
    table: Figures = {}
    for context in contexts:
        table[str(context)] = {
            step: {
                "reference": figures(ours(config, before, rows)[0]),
                "kernels": figures(ours(config, before, rows, kernels=True)[0]),
                "mlx_vlm": recorded["contexts"][str(context)][step] | {"source": recorded["source"]},
            }
            for step, (before, rows) in starts(context).items()
        }
    first = table[str(contexts[0])]["decode"]
    return {
        "contexts": table,
        "command_buffers": buffers,
        "decode": first,
        "detail": detail(config, contexts[0]),
        "detail_kernels": detail(config, contexts[0], kernels=True),
        "decode_4bit": {
            str(context): figures(ours(config, context, 1, kernels=True, recipe="4bit")[0])
            for context in contexts
        },
    }


TOGETHER = 4  # chunks of the prefill of a paged model that is counted


def command_buffers(config: ModelConfig, context: int) -> list[Figures]:
    """With MLX's own bounds, of a Max or Ultra, and with those set here: a decoded token's, a chunk's, and
    those of chunks that go through a paged layer together. `peak`: bytes, of a GPU as late as it may be."""
    wide = CHUNK * TOGETHER
    steps = {
        "decode": trace_ours(config, context=context, rows=1, kernels=True),
        f"prefill of {CHUNK}": trace_ours(config, context=context - CHUNK, rows=CHUNK, kernels=True),
        f"prefill of {wide:,}, paged": trace_ours(
            config, context=context - wide, rows=wide, kernels=True, together=TOGETHER
        ),
    }
    return [
        {"context": context, "step": name, "switches": whose, **asdict(cut(step, switches))}
        for name, step in steps.items()
        for whose, switches in (("MLX", Switches(50, 50)), ("set", Switches(OPERATIONS, ELEMENTS)))
    ]


def peer_figures(contexts: tuple[int, ...]) -> Figures:
    version = peer.version()
    if version is None:
        recorded: Figures = json.loads(RECORDED.read_text(encoding="utf-8"))
        recorded["source"] = f"recorded: {recorded['source']}"
        return recorded
    steps = {
        str(context): {step: mlx_vlm(*at) for step, at in starts(context).items()} for context in contexts
    }
    return {"contexts": steps, "source": f"mlx-vlm {version}, counted", "short": mlx_vlm(2000, 1)}


def detail(config: ModelConfig, context: int, kernels: bool = False) -> Figures:
    """One path at one context: what closing groups costs, which primitives there are, bytes by part."""
    plain, step = ours(config, context, 1, kernels=kernels)
    closing = ours(config, context + 3, 1, kernels=kernels)[0].dispatches
    both = ours(config, context + 127, 1, kernels=kernels)[0].dispatches
    exact = ours(config, context, 1, EXACT, kernels=kernels)[0].dispatches
    return {
        "dispatches_closing_csa": closing,
        "dispatches_closing_csa_and_hca": both,
        "dispatches_mean": round((96 * plain.dispatches + 31 * closing + both) / 128, 1),
        "dispatches_exact_numerics": exact,
        "dispatches_sinkhorn": 0 if kernels else sinkhorn_dispatches(config),
        "kinds": dict(plain.kinds.most_common()),
        "bytes_weights": bytes_by_part(plain, step),
    }


def sinkhorn_dispatches(config: ModelConfig) -> int:
    """Of the reference: a product and a division per half iteration after the softmax."""
    return 2 * config.layers * (2 * (2 * config.sinkhorn_iterations - 1))


PARTS = {
    "experts": ".experts.", "shared": "shared_", "compressor": "attn.compressor.", "indexer": "attn.indexer.",
    "attention": "attn.", "router": "ffn.gate", "head": "vocabulary", "embedding": "embed",
}  # fmt: skip


def bytes_by_part(counted: Count, step: Step) -> dict[str, int]:
    """Bytes of weights read, by part of the model; "rest" is hyper-connections, norms and tables."""
    parts: Counter[str] = Counter()
    for key, nbytes in counted.read.items():
        name = f".{step.names[key]}"
        part = next((part for part, pattern in PARTS.items() if pattern in name), "rest")
        parts["rest" if "attn_hc" in name else part] += nbytes
    return dict(parts)

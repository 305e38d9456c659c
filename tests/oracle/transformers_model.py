"""transformers' DeepSeek V4 in float32 on decoded official weights. Needs torch; only goldens are made here.

torch is imported by name at run time because neither the test suite nor the type checker has it.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    **{f"hc_{a}_{part}": f"{a}_hc.{part}" for a in ("attn", "ffn") for part in ("fn", "base", "scale")},
    "attn.attn_sink": "self_attn.sinks",
    "attn.wq_a.weight": "self_attn.q_a_proj.weight",
    "attn.q_norm.weight": "self_attn.q_a_norm.weight",
    "attn.wq_b.weight": "self_attn.q_b_proj.weight",
    "attn.wkv.weight": "self_attn.kv_proj.weight",
    "attn.kv_norm.weight": "self_attn.kv_norm.weight",
    "attn.wo_a.weight": "self_attn.o_a_proj.weight",
    "attn.wo_b.weight": "self_attn.o_b_proj.weight",
    "attn.indexer.wq_b.weight": "self_attn.compressor.indexer.q_b_proj.weight",
    "attn.indexer.weights_proj.weight": "self_attn.compressor.indexer.scorer.weights_proj.weight",
    "ffn.gate.weight": "mlp.gate.weight",
    "ffn.gate.bias": "mlp.gate.e_score_correction_bias",
    "ffn.gate.tid2eid": "mlp.gate.tid2eid",
    "ffn.shared_experts.w1.weight": "mlp.shared_experts.gate_proj.weight",
    "ffn.shared_experts.w3.weight": "mlp.shared_experts.up_proj.weight",
    "ffn.shared_experts.w2.weight": "mlp.shared_experts.down_proj.weight",
}
for _ours, _theirs in (("attn.compressor", ""), ("attn.indexer.compressor", ".indexer")):
    LAYER_NAMES |= {
        f"{_ours}.ape": f"self_attn.compressor{_theirs}.position_bias",
        f"{_ours}.wkv.weight": f"self_attn.compressor{_theirs}.kv_proj.weight",
        f"{_ours}.wgate.weight": f"self_attn.compressor{_theirs}.gate_proj.weight",
        f"{_ours}.norm.weight": f"self_attn.compressor{_theirs}.kv_norm.weight",
    }
TOP_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    "norm.weight": "model.norm.weight",
    **{f"hc_head_{part}": f"model.hc_head.hc_{part}" for part in ("fn", "base", "scale")},
}


def renamed(weights: Mapping[str, Array], layers: int, experts: int) -> Iterator[tuple[str, Array]]:
    """Every trunk tensor under its transformers name; experts stacked, gate rows above up rows."""
    for name in weights:
        if name in TOP_NAMES:
            yield TOP_NAMES[name], weights[name]
        elif name.startswith("layers.") and ".ffn.experts." not in name:
            _, number, rest = name.split(".", 2)
            yield f"model.layers.{number}.{LAYER_NAMES[rest]}", weights[name]
        elif not name.startswith(("layers.", "mtp.")):
            raise ValueError(f"no transformers name is known for {name}")
    for layer in range(layers):
        source, target = f"layers.{layer}.ffn.experts", f"model.layers.{layer}.mlp.experts"
        part = {w: [weights[f"{source}.{e}.{w}.weight"] for e in range(experts)] for w in ("w1", "w2", "w3")}
        pairs = [np.concatenate(pair) for pair in zip(part["w1"], part["w3"], strict=True)]
        yield f"{target}.gate_up_proj", np.stack(pairs)
        yield f"{target}.down_proj", np.stack(part["w2"])


def load(config: Mapping[str, Any], weights: Mapping[str, Array]) -> Any:
    """A float32 eager model; an error if any parameter or stored buffer is missing, extra or misshapen."""
    torch = importlib.import_module("torch")
    transformers = importlib.import_module("transformers")
    ours = {key: value for key, value in config.items() if key not in ("quantization_config", "torch_dtype")}
    # A deep copy, because the constructor adds keys to the dictionaries it is given.
    theirs = transformers.DeepseekV4Config(
        **copy.deepcopy(ours), attn_implementation="eager", dtype="float32"
    )
    theirs._experts_implementation = "eager"
    model = transformers.DeepseekV4ForCausalLM(theirs).float().eval()
    with torch.no_grad():  # a value that survives from initialisation would show as NaN
        for value in model.state_dict().values():
            value.fill_(float("nan") if value.is_floating_point() else -(2**31))
    state: dict[str, Any] = {}
    for name, array in renamed(weights, config["num_hidden_layers"], config["n_routed_experts"]):
        if name in state:
            raise ValueError(f"{name} is set twice")
        state[name] = torch.tensor(array)
    model.load_state_dict(state, strict=True)
    for name, value in model.state_dict().items():
        if not torch.equal(value, state[name]):
            raise ValueError(f"{name} did not take the checkpoint's value")
    return model


def prefill(model: Any, tokens: Sequence[int]) -> Array:
    """Logits [T, vocabulary] of one call."""
    torch = importlib.import_module("torch")
    with torch.no_grad():
        logits: Array = model(torch.tensor([list(tokens)]), use_cache=False).logits[0].numpy()
    return logits


def decode(model: Any, tokens: Sequence[int], split: int) -> Array:
    """The same logits from a prefill of `split` tokens and one cached call for each further token."""
    torch = importlib.import_module("torch")
    rows, cache = [], None
    with torch.no_grad():
        for begin, end in [(0, split), *((t, t + 1) for t in range(split, len(tokens)))]:
            out = model(torch.tensor([list(tokens[begin:end])]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(out.logits[0].numpy())
    return np.concatenate(rows)

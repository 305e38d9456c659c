"""Bad converted folders: each case damages a good one in one way and says what the error must name."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

Damage = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    name: str
    damage: Damage
    says: str  # a fragment of the error message


CASES: list[Case] = []


def case(says: str) -> Callable[[Damage], Damage]:
    def register(damage: Damage) -> Damage:
        CASES.append(Case(damage.__name__, damage, says))
        return damage

    return register


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(folder / "manifest.json", change)


def first_segment(content: dict[str, Any]) -> dict[str, Any]:
    segment: dict[str, Any] = content["experts"]["layers.0"]["segments"][0]
    return segment


@case("no manifest.json")
def unfinished(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@case("manifest.json is damaged")
def manifest_is_cut(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:1000])


@case("manifest.json is damaged")
def manifest_is_a_list(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


@case("manifest.json is damaged")
def manifest_is_binary(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(bytes(range(256)))


@case("format 99")
def another_format(folder: Path) -> None:
    manifest(folder, lambda m: m.update(format=99))


@case("manifest.json is damaged")
def manifest_holds_infinity(folder: Path) -> None:
    manifest(folder, lambda m: m["experts"]["layers.0"].update(count=float("inf")))


@case("manifest.json is damaged")
def parts_that_are_no_names(folder: Path) -> None:
    manifest(folder, lambda m: m["tensors"]["layers.2.attn.wq_b.weight"].update(parts={"weight": [1]}))


@case("manifest.json is damaged")
def parts_without_a_weight(folder: Path) -> None:
    manifest(folder, lambda m: m["tensors"]["embed.weight"].update(parts={}))


@case("plain name")
def file_name_with_a_zero_byte(folder: Path) -> None:
    manifest(folder, lambda m: m["tensors"]["embed.weight"].update(file="a\0b"))


@case("checkpoint")
def unknown_checkpoint(folder: Path) -> None:
    manifest(folder, lambda m: m.update(checkpoint="may"))


@case("plain name")
def file_outside_the_folder(folder: Path) -> None:
    manifest(folder, lambda m: m["tensors"]["embed.weight"].update(file="../embed.safetensors"))


@case("record")
def segment_outside_its_record(folder: Path) -> None:
    manifest(folder, lambda m: first_segment(m).update(offset=2**40))


@case("segment")
def segment_larger_than_its_bytes(folder: Path) -> None:
    """Taken at its word this would read memory that is not the model's."""
    manifest(folder, lambda m: first_segment(m).update(shape=[2**20, 2**10]))


@case("segment")
def segment_of_an_unknown_dtype(folder: Path) -> None:
    manifest(folder, lambda m: first_segment(m).update(dtype="F99"))


@case("segment")
def segment_off_its_grid(folder: Path) -> None:
    manifest(folder, lambda m: first_segment(m).update(offset=2))


@case("no tensor layers.2.attn.wq_b")
def tensor_missing_from_the_manifest(folder: Path) -> None:
    manifest(folder, lambda m: m["tensors"].pop("layers.2.attn.wq_b.weight"))


@case("belong to no part")
def tensor_too_many(folder: Path) -> None:
    manifest(folder, lambda m: m["tensors"].update({"layers.9.x": m["tensors"]["embed.weight"]}))


@case("no experts of layers.1")
def experts_missing_from_the_manifest(folder: Path) -> None:
    manifest(folder, lambda m: m["experts"].pop("layers.1"))


def stored(folder: Path, name: str, change: Callable[[mx.array], mx.array]) -> None:
    """Change a tensor's values and keep the manifest's sizes right."""
    file = json.loads((folder / "manifest.json").read_text())["tensors"][name]["file"]
    arrays = mx.load(str(folder / file))
    assert isinstance(arrays, dict)
    arrays[name] = change(arrays[name])
    mx.eval(list(arrays.values()))
    mx.save_safetensors(str(folder / file), arrays)
    manifest(folder, lambda m: m["files"].update({file: (folder / file).stat().st_size}))


@case("tid2eid names an expert outside 0 to 7")
def table_of_experts_that_are_not(folder: Path) -> None:
    """Taken at its word this would read memory that is not the model's."""
    stored(folder, "layers.0.ffn.gate.tid2eid", lambda ids: ids + 10**6)


@case("which is not mxfp8")
def matrix_with_too_few_rows(folder: Path) -> None:
    stored(folder, "layers.2.attn.wq_b.weight", lambda codes: codes[:4])


@case("is mlx.core.int64")
def floats_that_are_integers(folder: Path) -> None:
    stored(folder, "embed.weight", lambda values: values.astype(mx.int64))


@case("which is not mxfp4")
def another_known_format(folder: Path) -> None:
    manifest(folder, lambda m: m["tensors"]["layers.2.attn.wq_b.weight"].update(format="mxfp4"))


@case("expected mlx.core.bfloat16")
def codes_called_raw(folder: Path) -> None:
    manifest(folder, lambda m: m["tensors"]["layers.2.attn.wq_b.weight"].update(format="raw"))


@case("which is not mxfp8")
def matrix_without_scales(folder: Path) -> None:
    manifest(folder, lambda m: m["tensors"]["layers.2.attn.wq_b.weight"]["parts"].pop("scales"))


@case("expert segments of layers.0")
def record_without_scales(folder: Path) -> None:
    """Computed without them the codes are other numbers, with no sign of it."""
    manifest(folder, lambda m: m["experts"]["layers.0"]["segments"].pop(2))


@case("expert segments of layers.0")
def experts_of_another_format(folder: Path) -> None:
    manifest(folder, lambda m: m["experts"]["layers.0"].update(format="affine4"))


@case("recipe is 'official', which no conversion has")
def recipe_of_an_official_folder(folder: Path) -> None:
    """`check` compares no digests of one."""
    manifest(folder, lambda m: m.update(recipe="official"))


@case("has 4 experts, config.json asks for 8")
def fewer_experts_than_the_router_names(folder: Path) -> None:
    manifest(folder, lambda m: m["experts"]["layers.2"].update(count=4))


@case("config.json is of april")
def another_checkpoint_than_the_config(folder: Path) -> None:
    """It would choose other words for the effort."""
    manifest(folder, lambda m: m.update(checkpoint="0731"))


@case("format 'int3'")
def unknown_weight_format(folder: Path) -> None:
    manifest(folder, lambda m: m["tensors"]["layers.2.attn.wq_b.weight"].update(format="int3"))


@case("missing")
def file_missing(folder: Path) -> None:
    (folder / "layer-02.safetensors").unlink()


@case("the manifest says")
def file_cut(folder: Path) -> None:
    path = folder / "layer-02.experts.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@case("the manifest says")
def file_empty(folder: Path) -> None:
    (folder / "head.safetensors").write_bytes(b"")


@case("damaged")
def header_overwritten(folder: Path) -> None:
    path = folder / "layer-02.safetensors"
    data = bytearray(path.read_bytes())
    data[8:40] = bytes(32)
    path.write_bytes(data)


@case("damaged")
def header_of_impossible_length(folder: Path) -> None:
    path = folder / "layer-02.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])


@case("config.json is not JSON")
def config_is_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@case("config.json is not JSON")
def config_holds_an_endless_number(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"vocab_size": 640', f'"vocab_size": {"9" * 5000}'))


@case("rope_theta is 1000")
def config_holds_a_number_beyond_floats(folder: Path) -> None:
    edit(folder / "config.json", lambda c: c.update(rope_theta=10**400))


@case("rms_norm_eps is 1e-320")
def config_holds_a_number_that_float32_loses(folder: Path) -> None:
    edit(folder / "config.json", lambda c: c.update(rms_norm_eps=1e-320))


@case("compress_ratios is")
def config_has_fractions_for_ratios(folder: Path) -> None:
    edit(folder / "config.json", lambda c: c.update(compress_ratios=[float(r) for r in c["compress_ratios"]]))


@case("hc_sinkhorn_iters is 2147483647")
def config_asks_for_endless_work(folder: Path) -> None:
    edit(folder / "config.json", lambda c: c.update(hc_sinkhorn_iters=2**31 - 1))


@case("n_routed_experts is 2147483647")
def config_asks_for_all_memory(folder: Path) -> None:
    edit(folder / "config.json", lambda c: c.update(n_routed_experts=2**31 - 1))


@case("a key twice")
def config_has_a_key_twice(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace("{", '{"head_dim": 32,', 1))


@case("missing head_dim")
def config_lacks_a_key(folder: Path) -> None:
    edit(folder / "config.json", lambda c: c.pop("head_dim"))


@case("did you mean swiglu_limit?")
def config_misspells_a_key(folder: Path) -> None:
    edit(folder / "config.json", lambda c: c.update(swiglu_limits=c.pop("swiglu_limit")))


@case("config.json asks for")
def config_disagrees_with_the_tensors(folder: Path) -> None:
    edit(folder / "config.json", lambda c: c.update(vocab_size=641))


@case("compress_rope_theta")
def config_divides_by_zero(folder: Path) -> None:
    edit(folder / "config.json", lambda c: c.update(compress_rope_theta=1))


@case("no config.json")
def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@case("no tokenizer.json")
def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@case("tokenizer.json can't be read")
def tokenizer_is_not_json(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


@case("expert segments of layers.0")
def segments_out_of_order(folder: Path) -> None:
    """Gate and up are read as one matrix that starts at the gate."""

    def swap(content: dict[str, Any]) -> None:
        segments = {s["name"]: s for s in content["experts"]["layers.0"]["segments"]}
        up, gate = segments["up_codes"], segments["gate_codes"]
        up["offset"], gate["offset"] = gate["offset"], up["offset"]

    manifest(folder, swap)


@case("expert segments of layers.0")
def segments_upon_each_other(folder: Path) -> None:
    """Each is inside its record and has the right shape; the down matrix would be the gate's codes."""

    def move(content: dict[str, Any]) -> None:
        segments = {s["name"]: s for s in content["experts"]["layers.0"]["segments"]}
        segments["down_codes"]["offset"] = segments["gate_codes"]["offset"]

    manifest(folder, move)


@case("manifest.json can't be read: Is a directory")
def manifest_is_a_folder(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()

"""Bad checkpoints: each case damages a good one in one way and says what the error must name."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint.damage import INDEX, add_tensor, edit_header, edit_json, poke, shard

Damage = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    name: str
    damage: Damage
    says: str  # a fragment of the error message
    exit_code: int = 2


CASES: list[Case] = []


def case(says: str, exit_code: int = 2) -> Callable[[Damage], Damage]:
    def register(damage: Damage) -> Damage:
        CASES.append(Case(damage.__name__, damage, says, exit_code))
        return damage

    return register


# --- shards ---------------------------------------------------------------------------------------


@case("missing")
def missing_shard(folder: Path) -> None:
    shard(folder).unlink()


@case("truncated")
def truncated_shard(folder: Path) -> None:
    path = shard(folder)
    os.truncate(path, path.stat().st_size - 1)


@case("too few for a header")
def empty_shard(folder: Path) -> None:
    os.truncate(shard(folder), 0)


@case("describes only")
def trailing_bytes(folder: Path) -> None:
    with shard(folder).open("ab") as file:
        file.write(b"x")


@case("is not a file")
def shard_is_a_folder(folder: Path) -> None:
    path = shard(folder)
    path.unlink()
    path.mkdir()


@case("is not a file")
def shard_is_a_pipe(folder: Path) -> None:
    path = shard(folder)
    path.unlink()
    os.mkfifo(path)


# --- headers --------------------------------------------------------------------------------------


@case("not JSON")
def header_is_not_json(folder: Path) -> None:
    path = shard(folder)
    data = bytearray(path.read_bytes())
    data[8] = 0
    path.write_bytes(data)


@case("not JSON")
def header_nests_too_deep(folder: Path) -> None:
    text = b"[" * 100_000
    shard(folder).write_bytes(struct.pack("<Q", len(text)) + text)


@case("not a JSON object")
def header_is_a_list(folder: Path) -> None:
    shard(folder).write_bytes(struct.pack("<Q", 2) + b"[]")


@case("is damaged")
def header_length_off_by_one(folder: Path) -> None:
    path = shard(folder)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    path.write_bytes(struct.pack("<Q", length - 1) + data[8:])


@case("the header says it is 18446744073709551615 bytes long")
def header_length_huge(folder: Path) -> None:
    path = shard(folder)
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


@case("the header says it is")
def header_larger_than_the_file(folder: Path) -> None:
    path = shard(folder)
    data = path.read_bytes()
    path.write_bytes(struct.pack("<Q", len(data)) + data[8:])


@case("overlaps")
def overlapping_offsets(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        norm, other = "layers.0.attn_norm.weight", "layers.0.ffn_norm.weight"
        header[other]["data_offsets"] = header[norm]["data_offsets"]

    edit_header(shard(folder), change)


@case("truncated")
def offsets_out_of_range(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        last = max((e for n, e in header.items() if n != "__metadata__"), key=lambda e: e["data_offsets"][1])
        last["shape"][0] += 1000
        last["data_offsets"][1] += 1000 * last["shape"][1]

    edit_header(shard(folder), change)


@case("impossible offsets")
def negative_offsets(folder: Path) -> None:
    edit_header(shard(folder), lambda h: h["layers.0.attn_norm.weight"].update(data_offsets=[-8, 248]))


@case("impossible shape")
def negative_shape(folder: Path) -> None:
    edit_header(shard(folder), lambda h: h["layers.0.attn_norm.weight"].update(shape=[-128]))


@case("impossible shape")
def shape_of_booleans(folder: Path) -> None:
    edit_header(shard(folder), lambda h: h["layers.0.attn_norm.weight"].update(shape=[True]))


@case("needs")
def shape_and_offsets_disagree(folder: Path) -> None:
    edit_header(shard(folder), lambda h: h["layers.0.attn_norm.weight"].update(shape=[127]))


@case("unknown dtype")
def unknown_dtype(folder: Path) -> None:
    edit_header(shard(folder), lambda h: h["layers.0.attn_norm.weight"].update(dtype="F5"))


@case("is not dtype, shape and data_offsets")
def entry_lacks_a_key(folder: Path) -> None:
    edit_header(shard(folder), lambda h: h["layers.0.attn_norm.weight"].pop("dtype"))


@case("names a tensor twice")
def tensor_twice_in_a_header(folder: Path) -> None:
    path = shard(folder)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    text = data[8 : 8 + length].rstrip()
    extra = b',"layers.0.attn_norm.weight":{"dtype":"BF16","shape":[0],"data_offsets":[0,0]}}'
    text = text[:-1] + extra
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


# --- index ----------------------------------------------------------------------------------------


@case("there is no model.safetensors.index.json")
def no_index(folder: Path) -> None:
    (folder / INDEX).unlink()


@case("the index is damaged: it is not JSON")
def index_is_not_json(folder: Path) -> None:
    (folder / INDEX).write_text("{")


@case("has no weight_map")
def index_without_a_map(folder: Path) -> None:
    (folder / INDEX).write_text("{}")


def _name_a_file(folder: Path, name: object) -> None:
    edit_json(folder / INDEX, lambda i: i["weight_map"].update({"layers.0.attn_norm.weight": name}))


@case("expected a plain name")
def index_names_a_parent(folder: Path) -> None:
    _name_a_file(folder, "../" + shard(folder).name)


@case("expected a plain name")
def index_names_an_absolute_path(folder: Path) -> None:
    _name_a_file(folder, str(shard(folder).resolve()))


@case("expected a plain name")
def index_names_a_subfolder(folder: Path) -> None:
    _name_a_file(folder, "x/" + shard(folder).name)


@case("it places layers.0.attn_norm.weight in 7")
def index_names_a_number(folder: Path) -> None:
    _name_a_file(folder, 7)


@case("is a link that leads out of the folder")
def link_out_of_the_folder(folder: Path) -> None:
    path = shard(folder)
    outside = folder.parent / "elsewhere.safetensors"
    shutil.move(path, outside)
    path.symlink_to(outside)


@case("is a link that leads out of the folder")
def config_is_a_link_out(folder: Path) -> None:
    outside = folder.parent / "elsewhere.json"
    shutil.move(folder / "config.json", outside)
    (folder / "config.json").symlink_to(outside)


@case("is not in model-00003")
def index_places_a_tensor_elsewhere(folder: Path) -> None:
    _name_a_file(folder, shard(folder, 3).name)


@case("is not in model-00002-of-00010.safetensors as the index says")
def index_names_a_tensor_that_is_nowhere(folder: Path) -> None:
    edit_json(folder / INDEX, lambda i: i["weight_map"].update({"layers.0.more": shard(folder).name}))


@case("but not in the index")
def shard_holds_a_tensor_that_the_index_lacks(folder: Path) -> None:
    add_tensor(folder, "layers.0.more", index=False)


@case("is in both")
def tensor_in_two_shards(folder: Path) -> None:
    add_tensor(folder, "layers.1.attn.attn_sink", number=2, index=False)


# --- tensors --------------------------------------------------------------------------------------


@case("missing 1: layers.0.attn.attn_sink")
def missing_tensor(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        header["layers.0.attn.attn_sink_"] = header.pop("layers.0.attn.attn_sink")

    edit_header(shard(folder), change)
    edit_json(
        folder / INDEX,
        lambda i: i["weight_map"].update(
            {"layers.0.attn.attn_sink_": i["weight_map"].pop("layers.0.attn.attn_sink")}
        ),
    )


@case("unknown 1: layers.0.attn.more")
def extra_tensor(folder: Path) -> None:
    add_tensor(folder, "layers.0.attn.more")


@case("unknown 1: vision.tower")
def tensor_of_another_model(folder: Path) -> None:
    add_tensor(folder, "vision.tower")


@case("layers.0.hc_attn_fn is F32 [512, 24], expected F32 [24, 512]")
def misshapen_tensor(folder: Path) -> None:
    edit_header(shard(folder), lambda h: h["layers.0.hc_attn_fn"]["shape"].reverse())


@case("layers.0.attn_norm.weight is F16 [128], expected BF16 [128]")
def wrong_dtype(folder: Path) -> None:
    edit_header(shard(folder), lambda h: h["layers.0.attn_norm.weight"].update(dtype="F16"))


@case("layers.3.ffn.experts.5.w2.scale holds the scale byte 255")
def expert_scale_255(folder: Path) -> None:
    poke(folder, "layers.3.ffn.experts.5.w2.scale", 255, at=17)


@case("layers.2.attn.wq_b.scale holds the scale byte 255")
def dense_scale_255(folder: Path) -> None:
    poke(folder, "layers.2.attn.wq_b.scale", 255, at=3)


@case("mtp.0.attn.wkv.weight holds a weight that is not a number")
def weight_is_nan(folder: Path) -> None:
    poke(folder, "mtp.0.attn.wkv.weight", 0x7F, at=1000)


@case("layers.1.ffn.gate.tid2eid names an expert outside 0 to 7")
def hash_table_names_no_expert(folder: Path) -> None:
    poke(folder, "layers.1.ffn.gate.tid2eid", 8, at=16)


# --- config ---------------------------------------------------------------------------------------


@case("there is no config.json")
def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@case("there is no tokenizer.json")
def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@case("config.json is not JSON")
def config_is_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{,}")


@case("config.json is not JSON")
def config_is_binary(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")


@case("missing index_topk")
def config_lacks_a_key(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c.pop("index_topk"))


@case("unknown index_top_k (did you mean index_topk?)")
def config_misspells_a_key(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c.update(index_top_k=c.pop("index_topk")))


@case("the tensors are not those that config.json describes")
def config_disagrees_with_the_tensors(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c.update(hidden_size=256))


@case("missing")
def config_promises_more_experts(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c.update(n_routed_experts=16))


# --- what would hang, or break the program itself ---------------------------------------------------


@case("is a pipe")
def config_is_a_pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


@case("leads")
def shard_is_a_link_to_itself(folder: Path) -> None:
    path = shard(folder)
    path.unlink()
    path.symlink_to(path.name)


@case("expected a plain name")
def name_longer_than_a_file_system_takes(folder: Path) -> None:
    edit_json(folder / INDEX, lambda index: index["weight_map"].update({"embed.weight": "x" * 300}))


@case("expected a plain name")
def name_that_is_no_text(folder: Path) -> None:
    edit_json(folder / INDEX, lambda index: index["weight_map"].update({"embed.weight": "\ud800"}))


@case("tokenizer.json is damaged")
def empty_tokenizer(folder: Path) -> None:
    os.truncate(folder / "tokenizer.json", 0)


@case("far too many")
def shape_of_endless_dimensions(folder: Path) -> None:
    edit_header(shard(folder), lambda h: h["layers.0.attn_norm.weight"].update(shape=[2**62] * 500))

"""V4-Flash-Base: routed experts of FP8, scales as floats, copies of embedding and head. Nobody here has seen
the files; what public reports say of them is in docs/model.md."""

from __future__ import annotations

import hashlib
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoint.damage import add_tensor, edit_json, narrow_scales, poke
from checkpoint.decoding import RawFile, official_tensors, official_values
from checkpoints import run, same_bits

from dsv4_mlx.checkpoint.check import AT_ONCE, check_codes
from dsv4_mlx.checkpoint.manifest import read_manifest
from dsv4_mlx.checkpoint.match import match
from dsv4_mlx.checkpoint.reader import SourceReader
from dsv4_mlx.checkpoint.source import Source, open_source
from dsv4_mlx.convert.conversion_plan import FilePlan, make_plan
from dsv4_mlx.convert.recipe import find_recipe
from dsv4_mlx.convert.run import convert
from dsv4_mlx.convert.steps import QuantisedRecord, ScalesSpan, steps_for
from dsv4_mlx.convert.verify import verify
from dsv4_mlx.engine.engine import Engine, score
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.errors import InputError
from dsv4_mlx.synthetic import cut, release_config, write_checkpoint

EXPERT = "layers.2.ffn.experts.3.w2"
TOKENS = [0, 5, 9, 300, 17, 4, 4, 639, *range(40)]


@pytest.fixture
def base(checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(checkpoints("base"), tmp_path / "base"))


def expert_of(target: Path, name: str) -> tuple[mx.array, ...]:
    """codes, scales and, if there are any, biases of a weight, cut out of its record."""
    prefix, _, rest = name.partition(".ffn.experts.")
    number, matrix, _ = rest.split(".")
    table = read_manifest(target).experts[prefix]
    data = RawFile(target / table.file).tensors["experts"][2][int(number) * table.record_bytes :]
    kinds = {"U32": mx.uint32, "U8": mx.uint8, "BF16": mx.bfloat16}
    part = {"w1": "gate", "w3": "up", "w2": "down"}[matrix]
    return tuple(
        mx.array(np.frombuffer(data, np.uint8, s.bytes, s.offset)).view(kinds[s.dtype]).reshape(s.shape)
        for s in table.segments
        if s.name.startswith(part + "_")
    )


def test_experts_in_4bit_are_off_by_what_mlx_computes(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    source = checkpoints("base")
    summary = convert(source, tmp_path / "out", "4bit")
    report = verify(tmp_path / "out", source, block=4096)
    assert report.ok and report.lossless is False and summary.kept == ()
    assert set(report.parts["experts"].formats) == {"affine4"}
    official, found = official_tensors(source), {}
    for name in (n for n in official if ".ffn.experts." in n and n.endswith(".weight")):
        codes, scales, biases = expert_of(tmp_path / "out", name)
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        values = np.array(mx.dequantize(codes, scales, biases, group_size=64, bits=4), dtype=np.float64)
        expected = official_values(official, name)
        found[name] = float(np.sqrt(((values - expected) ** 2).sum() / (expected**2).sum()))
    worst = max(found, key=lambda name: found[name])
    assert report.errors["experts"].weight == worst
    assert report.errors["experts"].relative == pytest.approx(found[worst], rel=1e-5)
    assert 0.05 < found[worst] < 0.12


def experts_of(source: Source, recipe: str) -> FilePlan:
    plan = make_plan(match(source), find_recipe(recipe))
    return next(file for file in plan.files if file.name == "layer-01.experts.safetensors")


def test_padding_of_a_record_is_zero(checkpoints: Callable[[str], Path]) -> None:
    """The buffer that a record is made in held something else before."""
    source = open_source(checkpoints("base"))
    file = experts_of(source, "4bit")
    step = next(steps_for(file, source, 1 << 20))
    assert file.records is not None and file.records.record_bytes < 1 << 20
    used = file.records.segments[-1].offset + file.records.segments[-1].bytes
    with SourceReader(source) as reader:
        clean, dirty = (
            bytes(step.run(reader, memoryview(bytearray([fill]) * (1 << 20)))[0].data) for fill in (0, 255)
        )
    assert clean == dirty and used < len(clean) and not any(clean[used:])


def test_a_step_quantises_no_more_rows_than_a_block_allows(checkpoints: Callable[[str], Path]) -> None:
    source = open_source(checkpoints("base"))
    file = experts_of(source, "4bit")
    for block, rows in ((1 << 16, 128), (1 << 21, 384)):  # 320 columns of 4 bytes, in a quarter of the block
        steps = list(steps_for(file, source, block))
        assert len(steps) == 5 and all(isinstance(s, QuantisedRecord) and s.step == rows for s in steps)


def test_cut_scales_go_on_where_they_were_cut(checkpoints: Callable[[str], Path]) -> None:
    source = open_source(checkpoints("base"))
    weight = next(w for w in match(source).weights() if w.name == f"{EXPERT}.weight")
    whole = ScalesSpan("", weight.shape[0] * weight.shape[1] // 32, weight)
    first, rest = whole.cut(500)
    second, third = rest.cut(700)
    with SourceReader(source) as reader:
        found = bytearray()
        for piece in (first, second, third):
            into = bytearray(piece.bytes)
            piece.fill(reader, memoryview(into))
            found += into
        expected = bytearray(whole.bytes)
        whole.fill(reader, memoryview(expected))
    assert found == expected and len(set(expected)) > 1


@pytest.mark.parametrize("name", ["awkward base", "narrow base"])
def test_experts_too_narrow_for_4bit_stay_whole(
    name: str, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    """All of an expert, where only the down matrix is too narrow as well."""
    source = checkpoints(name)
    summary = convert(source, tmp_path / "out", "4bit")
    assert "layers.0.ffn.experts" in summary.kept
    assert {table.format for table in read_manifest(tmp_path / "out").experts.values()} == {"mxfp8"}
    assert verify(tmp_path / "out", source).errors["experts"].relative == 0


@pytest.mark.parametrize("recipe", ["native", "4bit"])
def test_paging_gives_the_same_bits(recipe: str, checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    convert(checkpoints("base"), tmp_path / "out", recipe)
    whole = Engine.open(tmp_path / "out", EngineOptions(context=512))
    expected = run(whole.model, TOKENS)
    assert np.isfinite(expected).all()
    for memory in ("1x", "50%"):
        engine = Engine.open(tmp_path / "out", EngineOptions(context=512, expert_memory=memory))
        assert engine.pager is not None
        assert same_bits([run(engine.model, TOKENS)], [expected])


@pytest.mark.parametrize("recipe", ["native", "4bit"])
def test_a_flipped_bit_in_an_expert_is_found(
    recipe: str, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    convert(checkpoints("base"), tmp_path / "out", recipe)
    table = read_manifest(tmp_path / "out").experts["layers.2"]
    path = tmp_path / "out" / table.file
    data = bytearray(path.read_bytes())
    data[-table.record_bytes * (table.count - 3) + table.segments[-1].offset] ^= 1
    path.write_bytes(data)
    (damage,) = verify(tmp_path / "out").damage
    assert damage.tensor == "layers.2.ffn.experts.3"


def test_a_scale_that_is_not_the_official_one_is_found(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    """With a digest that was computed anew: only the comparison can tell."""
    convert(checkpoints("base"), tmp_path / "out")
    table = read_manifest(tmp_path / "out").experts["layers.2"]
    path = tmp_path / "out" / table.file
    data = bytearray(path.read_bytes())
    start = len(data) - table.record_bytes * (table.count - 3)
    data[start + table.segments[-1].offset + table.segments[-1].bytes - 1] ^= 1
    path.write_bytes(data)
    digest = hashlib.sha256(data[start : start + table.record_bytes]).hexdigest()
    edit_json(
        tmp_path / "out" / "manifest.json",
        lambda manifest: manifest["experts"]["layers.2"]["digests"].__setitem__(3, digest),
    )
    assert verify(tmp_path / "out").ok
    (damage,) = verify(tmp_path / "out", checkpoints("base")).damage
    assert damage.tensor == "layers.2.ffn.experts.3" and f"{EXPERT}.scale" in damage.what


@pytest.mark.parametrize("recipe", ["native", "4bit"])
@pytest.mark.parametrize("tensor", [f"{EXPERT}.scale", "layers.1.attn.wq_b.scale"])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (3.0, "the scale 3"), (0.0, "the scale 0"), (-2.0, "the scale -2"), (float("nan"), "the scale nan"),
        (float("inf"), "the scale inf"), (2.0**-128, "the scale 2.93874e-39"),
    ],
)  # fmt: skip
def test_scales_that_are_no_powers_of_two(
    recipe: str, tensor: str, value: float, says: str, base: Path, tmp_path: Path
) -> None:
    poke(base, tensor, struct.pack("<f", value), at=4)
    with pytest.raises(InputError) as caught:
        convert(base, tmp_path / "out", recipe)
    assert f"{tensor} holds {says}, expected a power of two" in str(caught.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="expected a power of two"):
        Engine.open(base, EngineOptions(context=512))


def test_the_ends_of_the_range(base: Path, tmp_path: Path) -> None:
    """2^-127 is a subnormal float, whose byte is 0; 2^127 the largest power."""
    for at, value in ((0, 2.0**-127), (4, 2.0**127), (8, 2.0**-126)):
        poke(base, f"{EXPERT}.scale", struct.pack("<f", value), at=at)
    convert(base, tmp_path / "out")
    _, scales = expert_of(tmp_path / "out", f"{EXPERT}.weight")
    assert np.array(scales)[0].tolist() == [0] * 4 + [254] * 4 + [1] * 2  # 320 columns
    assert verify(tmp_path / "out", base).lossless


@pytest.mark.parametrize("value", [0x7F, 0xFF])
def test_an_expert_that_holds_nan(value: int, base: Path, tmp_path: Path) -> None:
    for number in range(5):
        poke(base, f"layers.2.ffn.experts.{number}.w2.weight", value, at=77)
    with pytest.raises(
        InputError, match=r"layers\.2\.ffn\.experts\.0\.w2\.weight holds a weight that is not"
    ):
        convert(base, tmp_path / "out")
    engine = Engine.open(base, EngineOptions(context=512, expert_memory="1x"))
    with pytest.raises(InputError, match=r"down_codes of expert \d hold a weight that is not a number"):
        run(engine.model, TOKENS)


@pytest.mark.parametrize("at", [0, AT_ONCE - 1, AT_ONCE, 2 * AT_ONCE + 6])
def test_nan_is_found_wherever_it_is(at: int) -> None:
    codes = np.full(2 * AT_ONCE + 7, 0x7E, np.uint8)
    check_codes(codes)
    codes[at] = 0xFF
    with pytest.raises(ValueError, match="not a number"):
        check_codes(codes)


def test_scales_may_be_bytes(base: Path, tmp_path: Path) -> None:
    """The same checkpoint with its scales as E8M0 converts to the same experts."""
    convert(base, tmp_path / "floats")
    narrow = narrow_scales(base, tmp_path / "narrow")
    convert(narrow, tmp_path / "bytes")
    for name in sorted(path.name for path in (tmp_path / "floats").glob("*.safetensors")):
        assert (tmp_path / "floats" / name).read_bytes() == (tmp_path / "bytes" / name).read_bytes(), name
    resident = run(Engine.open(tmp_path / "floats", EngineOptions(context=512)).model, TOKENS)
    for memory in ("1x", "auto"):
        engine = Engine.open(narrow, EngineOptions(context=512, expert_memory=memory))
        assert same_bits([run(engine.model, TOKENS)], [resident])


def test_scales_of_two_types_in_a_block(base: Path, tmp_path: Path) -> None:
    """Each is read as what it is; a record that is read when it is needed has one type."""
    mixed = narrow_scales(base, tmp_path / "mixed", "layers.1.ffn.experts.2.w1.")
    with pytest.raises(InputError, match=r"experts of layers\.1 are F32 and F8_E8M0, expected one type"):
        Engine.open(mixed, EngineOptions(context=512, expert_memory="1x"))
    found = run(Engine.open(mixed, EngineOptions(context=512)).model, TOKENS)
    assert same_bits([found], [run(Engine.open(base, EngineOptions(context=512)).model, TOKENS)])


def test_copies_of_embedding_and_head_are_left_out(base: Path, tmp_path: Path) -> None:
    plain = convert(base, tmp_path / "without")
    shape, more = (640, 192), bytes(640 * 192 * 2)
    for name in ("emb.tok_emb", "head"):
        add_tensor(base, f"mtp.0.{name}.weight", number=6, dtype="BF16", shape=shape, more=more)
    summary = convert(base, tmp_path / "with")
    assert plain.left_out == () and summary.tensors == plain.tensors
    assert set(summary.left_out) == {"mtp.0.emb.tok_emb.weight", "mtp.0.head.weight"}
    names = sorted(path.name for path in (tmp_path / "without").glob("*.safetensors"))
    for name in names:
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    assert verify(tmp_path / "with", base).lossless
    whole = run(Engine.open(base, EngineOptions(context=512)).model, TOKENS)
    assert same_bits([whole], [run(Engine.open(tmp_path / "with", EngineOptions(context=512)).model, TOKENS)])


def test_a_copy_of_another_shape_is_refused(base: Path, tmp_path: Path) -> None:
    add_tensor(base, "mtp.0.head.weight", number=6)
    with pytest.raises(
        InputError, match=r"mtp\.0\.head\.weight is F32 \[1\], expected BF16 or F32 \[640, 192\]"
    ):
        convert(base, tmp_path / "out")


@pytest.mark.parametrize("recipe", [pytest.param("native", marks=pytest.mark.long), "4bit"])
def test_config_need_not_say_it(
    recipe: str, base: Path, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    """As in files that other programs have repacked. A conversion is verified without its source too."""
    edit_json(base / "config.json", lambda config: config.pop("expert_dtype"))
    convert(base, tmp_path / "silent", recipe)
    convert(checkpoints("base"), tmp_path / "said", recipe)
    for path in sorted((tmp_path / "said").glob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "silent" / path.name).read_bytes()
    assert verify(tmp_path / "silent").ok and verify(tmp_path / "silent", base).ok
    resident, paged = (
        run(Engine.open(base, EngineOptions(context=512, expert_memory=memory)).model, TOKENS)
        for memory in ("auto", "1x")
    )
    assert same_bits([resident], [paged])


def test_config_and_experts_must_agree(
    base: Path, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    edit_json(base / "config.json", lambda config: config.update(expert_dtype="fp4"))
    with pytest.raises(InputError, match="the routed experts are FP8, config.json says FP4"):
        convert(base, tmp_path / "out")
    small = Path(shutil.copytree(checkpoints("small"), tmp_path / "small"))
    edit_json(small / "config.json", lambda config: config.update(expert_dtype="fp8"))
    with pytest.raises(InputError, match="the routed experts are FP4, config.json says FP8"):
        convert(small, tmp_path / "out")


@pytest.mark.parametrize("found", ["bf16", "FP8", None, 8, ["fp8"]])
def test_other_formats_are_refused(found: object, base: Path, tmp_path: Path) -> None:
    edit_json(base / "config.json", lambda config: config.update(expert_dtype=found))
    with pytest.raises(InputError, match="expert_dtype is .*, expected one of fp4, fp8"):
        convert(base, tmp_path / "out")


@pytest.mark.long
def test_at_true_size(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Layers of each kind at V4-Flash-Base's widths, 24 experts each, 3.1 GB: from the official folder, from
    both recipes, in memory and paged, to the same bits."""
    config = cut(release_config("base", true_size=True), layers=4, experts=24)
    config |= {"num_nextn_predict_layers": 0, "compress_ratios": [0, 0, 4, 128], "vocab_size": 4096}
    official = tmp_path / "official"
    write_checkpoint(official, config | {"num_hash_layers": 1})
    tokens = np.random.default_rng(0).integers(0, 4096, 12).tolist()

    def logits(folder: Path, memory: str) -> Any:
        engine = Engine.open(folder, EngineOptions(context=256, expert_memory=memory))
        assert (engine.pager is None) == (memory == "auto")
        return score(engine, tokens, decode=4).view(np.uint32)

    for recipe in ("native", "4bit"):
        record_property(f"{recipe} s", round(convert(official, tmp_path / recipe, recipe).seconds, 1))
        expected = logits(tmp_path / recipe, "auto")
        assert np.array_equal(logits(tmp_path / recipe, "6x"), expected)
        if recipe == "native":
            assert verify(tmp_path / recipe, official).lossless
            for memory in ("auto", "1x", "6x"):
                assert np.array_equal(logits(official, memory), expected)
        shutil.rmtree(tmp_path / recipe)

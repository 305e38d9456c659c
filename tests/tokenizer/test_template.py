"""Prompts: the three modes per checkpoint, against the vendor's library and the specification's digests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from deepseek_recipe import Conversation, DeepseekV4Encoding, SystemMessage, UserMessage
from tokenizers import Tokenizer

from dsv4_mlx.errors import InputError
from dsv4_mlx.synthetic.tokenizer import MARKERS, tokenizer_json
from dsv4_mlx.tokenizer.template import THINK, Prompts, Role, Think

BOS, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
MAX_TEXT = "f7a24f3b3050d4a83781e9b755b316aae2ec1d9dc87562541d90bcb04d7350f7"  # docs/model.md 5.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(tokenizer_json(1000), encoding="utf-8")
    return folder


def rendered(conversation: Conversation) -> str:
    return DeepseekV4Encoding().render_conversation(conversation).prompt


def decoded(folder: Path, ids: list[int]) -> str:
    """The ids' text by another library, markers included."""
    return Tokenizer.from_file(str(folder / "tokenizer.json")).decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("checkpoint", ["april", "0731"])
@pytest.mark.parametrize("think", THINK)
def test_modes_use_the_words_the_checkpoint_was_trained_on(
    folder: Path, checkpoint: str, think: Think
) -> None:
    prompts = Prompts(folder, checkpoint)
    words = {"april": {"on": "low", "max": "high"}, "0731": {"on": "high", "max": "max"}}[checkpoint]
    expected = Conversation(
        [SystemMessage("Be brief."), UserMessage("Why?")],
        thinking_mode=think != "off",
        reasoning_effort=words.get(think),  # type: ignore[arg-type]
    )
    prompt = rendered(expected)
    conversation = prompts.conversation([SystemMessage("Be brief."), UserMessage("Why?")], think)
    assert rendered(conversation) == prompt
    opener = "</think>" if think == "off" else "<think>"
    assert prompt.endswith(f"Be brief.{USER}Why?{ASSISTANT}{opener}") and prompt.startswith(BOS)


@pytest.mark.parametrize(("checkpoint", "think"), [("april", "off"), ("april", "on"), ("0731", "off")])
def test_no_effort_text_where_none_was_trained(folder: Path, checkpoint: str, think: Think) -> None:
    prompt = rendered(Prompts(folder, checkpoint).ask("Why?", think))
    assert prompt == f"{BOS}{USER}Why?{ASSISTANT}{'</think>' if think == 'off' else '<think>'}"


@pytest.mark.parametrize(("checkpoint", "think"), [("april", "max"), ("0731", "on")])
def test_the_maximum_effort_text_of_april(folder: Path, checkpoint: str, think: Think) -> None:
    """476 bytes between the start and the user, by digest; 0731 uses the same text for its "high"."""
    prompt = rendered(Prompts(folder, checkpoint).ask("Why?", think))
    preamble = prompt.removeprefix(BOS).split(USER)[0]
    assert len(preamble.encode()) == 476
    assert hashlib.sha256(preamble.encode()).hexdigest() == MAX_TEXT


def test_the_maximum_of_0731_is_another_text(folder: Path) -> None:
    prompt = rendered(Prompts(folder, "0731").ask("Why?", "max"))
    preamble = prompt.removeprefix(BOS).split(USER)[0]
    assert preamble and hashlib.sha256(preamble.encode()).hexdigest() != MAX_TEXT


def test_ids_are_the_rendered_text(folder: Path) -> None:
    prompts = Prompts(folder, "april")
    for think in THINK:
        conversation = prompts.ask("What is the sliding window of 128?\n\n日本語", think)
        ids = prompts.encode(conversation)
        prompt = rendered(conversation)
        assert decoded(folder, ids) == prompt
        assert ids[0] == 0 and ids[-1] in (prompts.markers.think, prompts.markers.end_think)
        assert ids[-2] == prompts.markers.assistant


@pytest.mark.parametrize("marker", [BOS, "<｜end▁of▁sentence｜>", *MARKERS])
@pytest.mark.parametrize("role", ["user", "system"])
def test_markers_typed_by_a_user_stay_text(folder: Path, marker: str, role: str) -> None:
    prompts = Prompts(folder, "april")
    marked = {prompts.tokenizer.encode(m)[0] for m in (BOS, "<｜end▁of▁sentence｜>", *MARKERS)}
    typed = f"before {marker} after"

    def specials(said: str) -> list[int]:
        messages = [SystemMessage(said if role == "system" else "x"), UserMessage(said)]
        ids = prompts.encode(prompts.conversation(messages, "on"))
        return [token for token in ids if token in marked]

    assert specials(typed) == specials("before after")
    assert typed in decoded(folder, prompts.encode(prompts.ask(typed, "on")))


def test_several_turns(folder: Path) -> None:
    prompts = Prompts(folder, "april")
    said: list[tuple[Role, str]] = [("user", "One?"), ("assistant", "1."), ("user", "Two?")]
    prompt = rendered(prompts.talk(said, "off"))
    end = "<｜end▁of▁sentence｜>"
    assert prompt == f"{BOS}{USER}One?{ASSISTANT}</think>1.{end}{USER}Two?{ASSISTANT}</think>"


def test_text_that_is_no_unicode_is_bad_input(folder: Path) -> None:
    prompts = Prompts(folder, "april")
    with pytest.raises(InputError, match="not text"):
        prompts.ask("a byte that is no UTF-8: \udcff", "off")
    with pytest.raises(InputError, match="not text"):
        prompts.talk([("user", "x"), ("assistant", "\ud800")], "on")


def test_bad_tokenizers_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        Prompts(tmp_path, "april")
    path = tmp_path / "tokenizer.json"
    for content in ("", "{", "[]", "{}", '{"model": 3}', "\x00\x01"):
        path.write_text(content)
        with pytest.raises(InputError, match="can't be read"):
            Prompts(tmp_path, "april")
    raw = json.loads(tokenizer_json(1000))
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] != ASSISTANT]
    raw["model"]["vocab"].pop(ASSISTANT)
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match="no token for '<｜Assistant｜>'"):
        Prompts(tmp_path, "april")

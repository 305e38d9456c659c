"""Regular expressions, thinking, the end of the turn, markers, forks, and compiling beside other work."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from grammar.scripted_model import Speaker, may_say

from dsv4_mlx.engine.constraint import Constraint
from dsv4_mlx.errors import InputError, MachineError
from dsv4_mlx.grammar.grammars import KEPT, Grammars
from dsv4_mlx.grammar.matcher import DSML
from dsv4_mlx.grammar.rules import Json, Regex, Rule, ToolCalls
from dsv4_mlx.synthetic.tokenizer import MARKERS

TOOLS = json.dumps([{"type": "function", "function": {"name": "f"}}])


def allowed(speaker: Speaker, constraint: Constraint) -> set[int]:
    mask = constraint.mask(speaker.size)
    if mask is None:
        return set(range(speaker.size))
    assert mask.dtype == np.bool_ and mask.shape == (speaker.size,)
    return set(np.flatnonzero(mask).tolist())


@pytest.mark.parametrize(
    "pattern", ["[a-c]{2,4}", "yes|no", '^(a/b|"q")$', "\\d+\\.\\d{2}", "(?s:.{3})", "é+"]
)
def test_answers_match_the_pattern(speaker: Speaker, pattern: str) -> None:
    for seed in range(8):
        tokens, ended = speaker.says(speaker.grammars.constraint(Regex(pattern), thinking=False), seed)
        assert ended
        assert re.fullmatch(pattern, speaker.text(tokens))


def test_the_end_is_allowed_exactly_where_the_grammar_may_end(speaker: Speaker) -> None:
    constraint = speaker.grammars.constraint(Regex("a+(bc)?"), thinking=False)
    for text, may_end in (("", False), ("a", True), ("aa", True), ("aab", False), ("aabc", True)):
        fork = constraint.fork()
        for token in speaker.ids(text):
            fork.accept(token)
        assert (speaker.end in allowed(speaker, fork)) == may_end, text
        assert fork.finished == (text == "aabc")
    for token in speaker.ids("abc"):
        constraint.accept(token)
    assert allowed(speaker, constraint) == {speaker.end}


def test_markers_are_never_allowed_inside(speaker: Speaker) -> None:
    """Not even those that the official file does not call special: they would be structure, not text."""
    path = speaker.folder / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    for token in document["added_tokens"]:
        token["special"] = False
    plain = speaker.folder / "plain"
    plain.mkdir()
    (plain / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    markers = {token for marker in MARKERS for token in speaker.ids(marker)}
    grammars = Grammars(plain, speaker.size, speaker.prompts.markers)
    for rule in (Json('{"type": "string"}'), Regex("(?s:.*)")):
        constraint = grammars.constraint(rule, thinking=False)
        if isinstance(rule, Json):
            constraint.accept(speaker.ids('"')[0])
        assert not allowed(speaker, constraint) & markers
        assert len(allowed(speaker, constraint)) > speaker.size / 2
    grammars.close()


def test_every_allowed_token_may_be_accepted_and_no_other(speaker: Speaker) -> None:
    constraint = speaker.grammars.constraint(
        Json('{"type": "array", "items": {"enum": ["on", 12]}}'), thinking=False
    )
    for token in speaker.ids('["on'):
        constraint.accept(token)
    may = allowed(speaker, constraint)
    for token in range(speaker.size):
        try:
            constraint.fork().accept(token)
        except InputError:
            assert token not in may
        else:
            assert token in may


def test_a_refused_token_leaves_the_constraint_as_it_was(speaker: Speaker) -> None:
    constraint = speaker.grammars.constraint(Regex("abc"), thinking=False)
    with pytest.raises(InputError, match="may not follow"):
        constraint.accept(speaker.ids("x")[0])
    with pytest.raises(InputError, match="may not follow"):
        constraint.accept(speaker.end)
    assert may_say(constraint, speaker.ids("abc"), speaker.end)


@pytest.mark.parametrize("thinking", (False, True))
@pytest.mark.parametrize("rule", [Json(), Regex("a"), ToolCalls(TOOLS)])
def test_a_mask_is_the_callers_own(speaker: Speaker, rule: Rule, thinking: bool) -> None:
    constraint = speaker.grammars.constraint(rule, thinking=thinking)
    mask = constraint.mask(speaker.size)
    assert mask is not None and mask.any() and not mask.all()
    before = allowed(speaker, constraint)
    mask[:] = True
    assert allowed(speaker, constraint) == before


@pytest.mark.parametrize("rule", [Json(), Regex("ab"), ToolCalls(TOOLS, required=True), ToolCalls(TOOLS)])
def test_thinking_is_free_and_comes_first(speaker: Speaker, rule: Json | Regex | ToolCalls) -> None:
    end_think, marker = speaker.prompts.markers.end_think, speaker.ids(DSML)[0]
    constraint = speaker.grammars.constraint(rule, thinking=True)
    free = isinstance(rule, ToolCalls) and not rule.required
    forbidden = {marker} if free else {marker, speaker.end}
    assert set(range(speaker.size)) - allowed(speaker, constraint) == forbidden
    for token in speaker.ids("so { anything"):
        constraint.accept(token)
    fork = constraint.fork()
    fork.accept(end_think)
    assert set(range(speaker.size)) - allowed(speaker, constraint) == forbidden
    begun = speaker.grammars.constraint(rule, thinking=False)
    assert allowed(speaker, fork) == allowed(speaker, begun)
    assert not fork.finished


def test_a_fork_goes_its_own_way(speaker: Speaker) -> None:
    constraint = speaker.grammars.constraint(Regex("a(b|c)d"), thinking=False)
    constraint.accept(speaker.ids("a")[0])
    fork = constraint.fork()
    fork.accept(speaker.ids("b")[0])
    assert may_say(fork, speaker.ids("d"), speaker.end)
    assert may_say(constraint, speaker.ids("cd"), speaker.end)


def test_one_grammar_is_compiled_once_and_many_are_not_kept(speaker: Speaker) -> None:
    first = speaker.grammars.constraint(Regex("once"), thinking=False)
    first.accept(speaker.ids("o")[0])
    second = speaker.grammars.constraint(Regex("once"), thinking=False)
    assert may_say(second, speaker.ids("once"), speaker.end)
    for i in range(KEPT + 5):
        speaker.grammars.constraint(Regex(f"a{i}"), thinking=False)
    assert len(speaker.grammars._kept) == KEPT


def test_threads_share_the_grammars(speaker: Speaker) -> None:
    def answer(seed: int) -> str:
        constraint = speaker.grammars.constraint(Regex(f"[a-z]{{{seed % 3 + 1}}}"), thinking=False)
        tokens, ended = speaker.says(constraint, seed)
        assert ended
        return speaker.text(tokens)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(answer, range(12)))
    assert answers == [answer(seed) for seed in range(12)]
    assert [len(text) for text in answers] == [seed % 3 + 1 for seed in range(12)]


def test_compiling_has_a_time_limit(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = Grammars(speaker.folder, speaker.size, speaker.prompts.markers, seconds=0.3)
    grammars.load()
    release = time.monotonic() + 3

    def slow(rule: Regex) -> str:
        time.sleep(max(0.0, release - time.monotonic()))
        return "start: /a/"

    monkeypatch.setattr("dsv4_mlx.grammar.grammars._grammar", slow)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(grammars.constraint, Regex("slow"), thinking=False) for _ in range(2)]
        for one in waiting:
            with pytest.raises(InputError, match="takes longer than 0.3 s"):
                one.result()
        with pytest.raises(MachineError, match="too many grammars"):
            grammars.constraint(Regex("another"), thinking=False)
    grammars.close()


def test_a_tokenizer_that_can_not_be_used_is_named(tmp_path: Path, speaker: Speaker) -> None:
    path = tmp_path / "tokenizer.json"
    for text in ("", "[]", "{}", '{"added_tokens": 3}', '{"added_tokens": [{"id": 1}]}', "[" * 100_000):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"tokenizer.json"):
            Grammars(tmp_path, 10, speaker.prompts.markers).load()
    without = json.loads((speaker.folder / "tokenizer.json").read_text(encoding="utf-8"))
    without["added_tokens"] = [token for token in without["added_tokens"] if token["content"] != DSML]
    path.write_text(json.dumps(without), encoding="utf-8")
    grammars = Grammars(tmp_path, speaker.size, speaker.prompts.markers)
    with pytest.raises(InputError, match="no token for tool calls"):
        grammars.constraint(ToolCalls(TOOLS), thinking=False)
    assert grammars.constraint(Json(), thinking=True)
    grammars.close()

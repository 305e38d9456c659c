"""Custom tools: their one text follows the grammar that came with them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from grammar.scripted_model import Speaker, may_say
from grammar.test_tools import M, parsed

from dsv4_mlx.errors import InputError
from dsv4_mlx.grammar.rules import ToolCalls
from dsv4_mlx.server.protocols.tools import custom_function

PATCH = """
start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?
hunk: "*** Delete File: " filename LF | "*** Add File: " filename LF add_line+
filename: /(.+)/
add_line: "+" /(.*)/ LF -> line
%import common.LF
"""
ONE = "*** Begin Patch\n*** Add File: a.py\n+print(1)\n*** End Patch"


def rule(syntax: str, definition: str) -> ToolCalls:
    grammar = {"type": "grammar", "syntax": syntax, "definition": definition}
    tool = custom_function({"type": "custom", "name": "anything", "format": grammar}, "tools")
    return ToolCalls(json.dumps([{"type": "function", "function": tool}]), required=True)


def block(text: str) -> str:
    head = f'\n\n<{M}tool_calls>\n<{M}invoke name="anything">\n<{M}parameter name="input" string="true">'
    return f"{head}{text}</{M}parameter>\n</{M}invoke>\n</{M}tool_calls>"


@pytest.mark.parametrize(
    ("syntax", "definition", "text", "allowed"),
    [
        ("lark", PATCH, ONE, True),
        ("lark", PATCH, ONE + "\n", True),
        ("lark", PATCH, "not a patch", False),
        ("lark", PATCH, ONE.replace("+print", "print"), False),
        ("lark", 'start: "ABC" /[0-9]/+', "ABC12", True),
        ("lark", 'start: "ABC" /[0-9]/+', "ABC", False),
        ("lark", 'start: "</" "b>" // }', "</b>", True),
        ("lark", "start: /[^*]+/", "a < b </i> c", True),
        ("lark", "start: /[^*]+/", "a * b", False),
        ("lark", "start: /(.|\\n)+/", "a\nb<", True),
        ("regex", "[a-z]+(</b>)?", "abc</b>", True),
        ("regex", "[a-z]+", "abc1", False),
        ("regex", "a|b", "b", True),
        ("regex", "a|b", "ab", False),
    ],
)
def test_what_a_custom_tool_may_be_given(
    speaker: Speaker, syntax: str, definition: str, text: str, allowed: bool
) -> None:
    constraint = speaker.grammars.constraint(rule(syntax, definition), thinking=False)
    tokens = speaker.ids(block(text))
    assert may_say(constraint, tokens, speaker.end) == allowed
    if allowed:
        assert parsed(speaker, tokens)[1] == [("anything", {"input": text})]


@pytest.mark.parametrize(
    ("syntax", "definition", "pattern"),
    [
        ("lark", 'start: "ABC" /[0-9]/+', "ABC[0-9]+"),
        ("lark", "start: /[^*]+/", "[^*]+"),
        ("lark", 'start: "x" b\nb: /[a-z]{1,5}/ | "</" b', "x(</)*[a-z]{1,5}"),
        ("regex", "SELECT [a-z]{1,9};", "SELECT [a-z]{1,9};"),
    ],
)
def test_a_model_that_says_anything_says_what_follows_it(
    speaker: Speaker, syntax: str, definition: str, pattern: str
) -> None:
    for seed in range(4):
        constraint = speaker.grammars.constraint(rule(syntax, definition), thinking=False)
        tokens, ended = speaker.says(constraint, seed)
        calls = parsed(speaker, tokens)[1]
        assert ended and calls
        assert all(re.fullmatch(pattern, given["input"]) for _, given in calls)


@pytest.mark.parametrize(
    ("syntax", "definition", "said"),
    [
        ("lark", 'start: "ABC', "no lark grammar"),
        ("lark", "begin: /a/", "no lark grammar"),
        ("lark", "start: nowhere", "no lark grammar"),
        ("lark", 'start: "a" }\nother: %lark { start: "b" ', "no lark grammar"),
        ("lark", "start: <[5]>", "names tokens"),
        ("lark", "start: /a/" + " " * 70_000, "characters"),
        ("regex", "(", "no regex grammar"),
        ("regex", "a(?=b)", "no regex grammar"),
        ("regex", "a/b\\", "no regex grammar"),
        ("regex", "a)|(b", "no regex grammar"),
    ],
)
def test_a_grammar_that_is_none_is_refused(speaker: Speaker, syntax: str, definition: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        speaker.grammars.constraint(rule(syntax, definition), thinking=False)


def test_a_call_must_hold_its_text_once(speaker: Speaker) -> None:
    plain: Any = custom_function({"name": "anything"}, "tools")
    calls = ToolCalls(json.dumps([{"type": "function", "function": plain}]), required=True)
    constraint = speaker.grammars.constraint(calls, thinking=False)
    assert may_say(constraint, speaker.ids(block("any </b> text")), speaker.end)
    empty = f'\n\n<{M}tool_calls>\n<{M}invoke name="anything">\n\n</{M}invoke>\n</{M}tool_calls>'
    assert not may_say(constraint, speaker.ids(empty), speaker.end)

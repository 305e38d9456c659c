"""Rules -> constraints, off the hot path, within limits."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from pathlib import Path

from llguidance import LLMatcher, LLParserLimits

from dsv4_mlx.engine.constraint import AfterThinking, Constraint
from dsv4_mlx.errors import InputError, MachineError
from dsv4_mlx.grammar.matcher import (
    GuardedMarks,
    Matched,
    ShortNumbers,
    TextThenCalls,
    Vocabulary,
    first_line,
)
from dsv4_mlx.grammar.rules import Json, Regex, Rule, ToolCalls
from dsv4_mlx.grammar.tools import CallBlock, json_node, json_rule, regex_rule
from dsv4_mlx.tokenizer.template import Markers

PATTERN = 4096  # characters of a regular expression
SECONDS = 2.0  # to compile one grammar
KEPT = 32  # compiled grammars: an agent sends the same tools every turn

# A lexer state takes 1 to 2 kB; one step may take some 15 ms at worst before it is given up.
LIMITS = LLParserLimits(max_lexer_states=50_000, max_grammar_size=200_000, verbose_errors=False)


class Grammars:
    """Makes constraints for one model, for several threads. Calls block: keep them off an event loop.

    folder: has the model's tokenizer.json. size: ids of the model.
    """

    def __init__(self, folder: Path, size: int, markers: Markers, *, seconds: float = SECONDS) -> None:
        self.folder, self.size, self.markers, self.seconds = folder, size, markers, seconds
        self._vocabulary: Vocabulary | None = None
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        self._workers = ThreadPoolExecutor(2, "grammar")

    def load(self) -> Vocabulary:
        """Index the vocabulary: seconds at full size; the first `constraint` does it otherwise."""
        with self._lock:
            if self._vocabulary is None:
                path = self.folder / "tokenizer.json"
                self._vocabulary = Vocabulary(path, self.size, self.markers.end)
            return self._vocabulary

    def constraint(self, rule: Rule, *, thinking: bool) -> Constraint:
        """A new constraint for one answer; `thinking`: the prompt ends with the think marker.

        Raises InputError for what can't be enforced, and MachineError if too many others are being compiled.
        """
        vocabulary = self.load()
        answer = self._answer(rule, vocabulary)
        if not thinking:
            return answer
        may_end = isinstance(rule, ToolCalls) and not rule.required and rule.content is None
        forbidden = set() if may_end else {self.markers.end}
        if vocabulary.dsml is not None:
            forbidden.add(vocabulary.dsml)
        return AfterThinking(answer, self.markers.end_think, forbidden)

    def close(self) -> None:
        """Let no new work begin."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _answer(self, rule: Rule, vocabulary: Vocabulary) -> Constraint:
        if not isinstance(rule, ToolCalls):
            answer = Matched(vocabulary, self._compiled(lambda: _grammar(rule), vocabulary))
            return ShortNumbers(answer) if isinstance(rule, Json) else answer
        marker = vocabulary.dsml
        if marker is None:
            raise InputError(
                "tokenizer.json has no token for tool calls",
                where=self.folder,
                next="use the tokenizer.json of the official checkpoint",
            )
        if rule.required or rule.content is not None:
            begin = Matched(vocabulary, self._compiled(lambda: CallBlock(rule, marker).begin, vocabulary))
            return GuardedMarks(begin, marker)
        block = Matched(vocabulary, self._compiled(lambda: CallBlock(rule, marker).inside, vocabulary))
        return TextThenCalls(vocabulary, marker, GuardedMarks(block, marker))

    def _compiled(self, text: Callable[[], str], vocabulary: Vocabulary) -> LLMatcher:
        """A matcher at the grammar's start. Raises InputError, MachineError."""
        work: Future[LLMatcher] = self._workers.submit(self._compile, text, vocabulary)
        try:
            return work.result(self.seconds)
        except Late:
            if work.cancel():
                raise MachineError("too many grammars are being compiled", next="try again") from None
            raise InputError(
                f"the grammar takes longer than {self.seconds:g} s to compile",
                next="use a smaller schema or a simpler pattern",
            ) from None

    def _compile(self, text: Callable[[], str], vocabulary: Vocabulary) -> LLMatcher:
        grammar = text()
        with self._lock:
            if grammar in self._kept:
                self._kept.move_to_end(grammar)
                return self._kept[grammar].deep_copy()
        matcher = LLMatcher(
            vocabulary.tokens, LLMatcher.grammar_from_lark(grammar), log_level=0, limits=LIMITS
        )
        first = matcher.deep_copy()
        if not matcher.is_error():
            first.compute_bitmask()  # some defects show at the first step only
        for one in (matcher, first):
            if one.is_error():
                raise _refusal(one.get_error())
        with self._lock:
            self._kept[grammar] = matcher
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return matcher.deep_copy()


def check(rule: Json | Regex) -> None:
    """Raises InputError for what can't be enforced; needs no vocabulary."""
    error = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(_grammar(rule)), limits=LIMITS)
    if error and not error.startswith("WARNING"):
        raise _refusal(error)


def _grammar(rule: Json | Regex) -> str:
    if isinstance(rule, Json):
        return f"start: {json_rule(json_node(rule))}"
    if len(rule.pattern) > PATTERN:
        raise InputError(f"the pattern has {len(rule.pattern)} characters, expected at most {PATTERN}")
    return f"start: {regex_rule(rule.pattern)}"


def _refusal(message: str) -> InputError:
    return InputError(
        f"this can't be enforced: {_reason(message)}",
        next="change what is asked for: only what can be enforced is accepted",
    )


def _reason(message: str) -> str:
    if "oneOf" in message:
        return "branches of oneOf that overlap; use anyOf, or branches that differ in a constant"
    if "regex parse error" in message:
        errors = [line.strip() for line in message.splitlines() if line.strip().startswith("error:")]
        return f"a pattern is not understood{errors[0].removeprefix('error') if errors else ''}"
    return first_line(message).rpartition("failed to compile JSON schema: ")[2]

"""Bodies made at random of the vendors' types: no failure, no hang, nothing dropped in silence."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from server.fakes import VOCABULARY, FakeWorker, PlainTurns, Script
from server.test_specification import ASIDE, PARAMS
from server.typed import Maker, Path, mended, spoilt
from starlette.types import Message

from dsv4_mlx.grammar.grammars import Grammars
from dsv4_mlx.server.app import App
from dsv4_mlx.server.metrics import Metrics
from dsv4_mlx.server.middleware import NOTICE
from dsv4_mlx.server.options import MODEL_ID, ServerOptions
from dsv4_mlx.server.protocols.content import specification
from dsv4_mlx.server.protocols.request import ServerInfo
from dsv4_mlx.server.streaming import ServerContext
from dsv4_mlx.server.translate import Translator
from dsv4_mlx.tokenizer.template import Prompts, Spelling

CONTEXT = 1 << 16
ROUTES = {
    "chat": "/v1/chat/completions", "completions": "/v1/completions", "responses": "/v1/responses",
    "messages": "/v1/messages",
}  # fmt: skip
ENDS = {
    "chat": b"data: [DONE]\n\n", "completions": b"data: [DONE]\n\n", "responses": b'"response.completed"',
    "messages": b'{"type":"message_stop"}',
}  # fmt: skip
# Fields that say how, not what: their effect is in test_specification.py's walk.
MANNER = {"model", "stop", "stop_sequences", "tool_choice", "logit_bias", "include", "thinking"}
# Words that the model does not read, by the end of the way to them: names that only tell things apart; an
# address where the file's bytes are there too; thinking, of which turns that call tools alone are kept.
NOT_READ: set[Path] = {
    ("json_schema", "name"), ("format", "=json_schema", "name"), ("=namespace", "name"), ("messages", "name"),
    ("=function_call_output", "name"),
    ("=input_file", "file_url"), ("=thinking", "thinking"), ("=reasoning_text", "text"),
}  # fmt: skip


class InProcess:
    """The application without a socket; its model says hello."""

    def __init__(self, prompts: Prompts, spelling: Spelling, grammars: Grammars) -> None:
        options = ServerOptions()
        facts = ServerInfo(options, MODEL_ID, prompts.levels, VOCABULARY, CONTEXT, 1 << 20)
        translator = Translator(facts, spelling, grammars, PlainTurns(prompts))
        self.worker = FakeWorker(prompts, [Script("</think>hello")], CONTEXT)
        self.threads, self.crashes = ThreadPoolExecutor(2), list[str]()
        context = ServerContext(translator, self.worker, self.threads, options.limits, Metrics(), self._crash)
        self.app = App(context)

    def _crash(self, detail: str) -> str:
        self.crashes.append(detail)
        return "crash.log"

    async def ask(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers, body. Raises TimeoutError after 20 s."""
        self.crashes.clear()
        self.worker.jobs.clear()
        self.worker.tickets.clear()
        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": headers, "state": {},
        }  # fmt: skip
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Message] = []

        async def receive() -> Message:
            if not waiting:
                await asyncio.Event().wait()  # a client that stays
            return waiting.pop()

        async def send(message: Message) -> None:
            sent.append(message)

        async with asyncio.timeout(20):
            await self.app(scope, receive, send)
        told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], told, b"".join(one.get("body", b"") for one in sent[1:])


@pytest.fixture(scope="module")
def server(prompts: Prompts, spelling: Spelling, grammars: Grammars) -> Iterator[InProcess]:
    made = InProcess(prompts, spelling, grammars)
    yield made
    made.threads.shutdown()


def unnamed(protocol: str, body: dict[str, Any], notice: str) -> list[str]:
    """Fields of a body outside the specification, or without effect, that the answer does not name."""
    classes = specification()[protocol]["fields"]
    plain = [name for name, value in body.items() if value not in (None, "", [], {}, False)]
    told = [name for name in plain if classes.get(name) not in ("read", "inert")]
    return [name for name in told if f"{name} " not in notice]


def dropped(protocol: str, body: dict[str, Any], maker: Maker, prompt: str, notice: str) -> list[Path]:
    """Ways to words that are neither in the prompt nor named nor of no concern to the model."""
    classes, sent = specification()[protocol]["fields"], json.dumps(body)
    choice = body.get("tool_choice")
    no_tools = choice == "none" or isinstance(choice, dict) and choice.get("type") == "none"
    found = []
    for path, word in maker.words:
        if word in prompt or word not in sent or classes[path[0]] != "read" or path[0] in MANNER:
            continue
        of_tools = path[0] in ("tools", "functions")
        elsewhere = of_tools and any(f"tools of kind {part[1:]}" in notice for part in path if part[0] == "=")
        named = any(f"{path[0]}.{part} " in notice for part in path)
        aside = {*path} & (ASIDE | {"tool_call_id"}) or path[-2:] in NOT_READ or path[-3:] in NOT_READ
        if not (elsewhere or named or aside or of_tools and no_tools):
            found.append(path)
    return found


async def walk(server: InProcess, spelling: Spelling, protocol: str, bodies: int) -> Counter[str]:
    """Every third body is streamed, every second one spoilt in up to three places."""
    seen: Counter[str] = Counter()
    refused = {name for name, kind in specification()[protocol]["fields"].items() if kind == "refused"}
    for seed in range(bodies):
        dice = random.Random(f"{protocol} {seed}")
        maker = Maker(dice)
        body = mended(dice, protocol, maker.fields(PARAMS[protocol], ()), refused)
        body["stream"] = seed % 3 == 0
        for _ in range(dice.randrange(1, 4) if seed % 2 else 0):
            body = spoilt(dice, body)
        status, headers, answer = await server.ask(ROUTES[protocol], json.dumps(body).encode())
        assert status < 500 and not server.crashes, (seed, status, answer[-500:], server.crashes)
        seen[str(status)] += 1
        if status != 200:
            assert json.loads(answer)["error"]["message"], seed
            continue
        notice = headers.get(NOTICE, "")
        assert not unnamed(protocol, body, notice), (seed, notice)
        assert ENDS[protocol] in answer if body.get("stream") else isinstance(json.loads(answer), dict), seed
        if seed % 2 == 0:
            seen["whole"] += 1
            prompt = spelling.decode(list(server.worker.jobs[0].prompt))
            assert not (lost := dropped(protocol, body, maker, prompt, notice)), (seed, lost)
    return seen


@pytest.mark.parametrize("bodies", [75, pytest.param(5000, marks=pytest.mark.long)])
@pytest.mark.parametrize("protocol", ROUTES)
def test_bodies_of_the_vendors_types(
    server: InProcess,
    spelling: Spelling,
    protocol: str,
    bodies: int,
    record_property: Callable[[str, object], None],
) -> None:
    """Each text in them has a word of its own: what of it is neither in the prompt nor named is a loss."""
    seen = asyncio.run(walk(server, spelling, protocol, bodies))
    record_property(protocol, dict(seen))
    assert sum(seen.values()) - seen["whole"] == bodies and seen["whole"] > bodies / 4

"""Many clients at once, some of them bad ones, against a server that replays numbered turns."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from server.client import Reply, parsed, request
from server.sse import events, read_chat, read_messages, read_responses

SILENCE = 1.0  # seconds without a byte that count as a gap
HI = [{"role": "user", "content": "hi"}]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI, "thinking": {"type": "disabled"}, "max_tokens": 4000},
    "/v1/completions": {"prompt": "hi", "max_tokens": 4000},
    "/v1/responses": {"input": "hi", "reasoning": {"effort": "none"}, "max_output_tokens": 4000},
    "/v1/messages": {"messages": HI, "max_tokens": 4000, "thinking": {"type": "disabled"}},
}
CHAT = "/v1/chat/completions"


def turn(number: int) -> dict[str, Any]:
    """A line of the replayed file. Every 30th has silences longer than a keep-alive, every 20th is long."""
    if number % 30 == 7:
        return {"content": f"turn {number} .", "tokens_per_second": 0.15}
    words = 200 if number % 20 == 3 else 12
    pace = 0 if words > 100 else 10 + number % 31
    return {"content": f"turn {number} " + f"t{number} " * words + "end", "tokens_per_second": pace}


@dataclass
class Seen:
    """What the clients saw. `wrong`: what should not have been."""

    counts: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    gaps: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Crowd:
    """`size` clients that ask again and again until `end` (time.monotonic()), when all leave at once."""

    def __init__(self, port: int, size: int, end: float, seed: int = 1) -> None:
        self.port, self.size, self.end, self.seed = port, size, end, seed
        self.seen = Seen()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self.size):
                group.create_task(self._client(number))
            group.create_task(self._hostile())

    async def _client(self, number: int) -> None:
        draw = random.Random(self.seed * 1000 + number)
        asked = 0
        while time.monotonic() < self.end:
            asked += 1
            kind = draw.choices(("stream", "plain", "leaves", "slow"), (55, 10, 22, 13))[0]
            path = draw.choice(list(ASKED))
            name = f"client-{number}-{asked}"
            body = {**ASKED[path], "model": name, "stream": kind != "plain"}
            raw, left = await self._ask(request("POST", path, body), kind, draw)
            if left:
                self.seen.counts["left"] += 1
            elif not self._check(kind, path, name, raw):
                await asyncio.sleep(draw.uniform(0.2, 1))

    async def _ask(self, sent: bytes, kind: str, draw: random.Random) -> tuple[bytes, bool]:
        """What came, and whether this client went before its end."""
        connection = socket.socket()
        connection.setblocking(False)
        if kind == "slow":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=4096)
        leaves = min(self.end, time.monotonic() + draw.expovariate(1.0)) if kind == "leaves" else self.end
        raw = bytearray()
        try:
            writer.write(sent)
            last = 0.0
            while True:
                async with asyncio.timeout(max(0.0, leaves - time.monotonic())):
                    piece = await reader.read(1024 if kind == "slow" else 65536)
                if not piece:
                    return bytes(raw), False
                if last and kind == "stream" and time.monotonic() - last > SILENCE:
                    self.seen.gaps.append(time.monotonic() - last)
                raw += piece
                last = time.monotonic()
                if kind == "slow":
                    await asyncio.sleep(draw.uniform(0, 0.08))
        except TimeoutError:
            return bytes(raw), True
        finally:
            writer.close()

    def _check(self, kind: str, path: str, name: str, raw: bytes) -> bool:
        """Whether the request was answered; what is wrong with the answer is noted."""
        reply = parsed(raw)
        if reply.status == 429:
            self.seen.counts["refused"] += 1
            if not reply.headers.get("retry-after", "").isdigit():
                self.seen.wrong.append("429 without Retry-After")
            return False
        if reply.status != 200:
            self.seen.wrong.append(f"{path}: {reply.status} {reply.text[:200]}")
            return False
        self.seen.counts[kind] += 1
        said = content(path, reply) if kind != "plain" else whole_content(path, reply.json())
        found = re.match(r"turn (\d+) ", said)
        number = int(found[1]) if found else -1
        if number < 0 or said != turn(number)["content"]:
            self.seen.wrong.append(f"{name}: {len(said)} characters that are no turn: {said[:60]!r}")
        self.seen.turns[number] += 1
        models = set(re.findall(r'"model":\s?"([^"]*)"', reply.text))
        if models != {name}:
            self.seen.wrong.append(f"{name}: its stream names {models}")
        return True

    async def _hostile(self) -> None:
        draw = random.Random(self.seed)
        while time.monotonic() < self.end:
            for sent, expected in hostile(draw):
                raw = await self._throw(sent)
                status = parsed(raw).status if raw.startswith(b"HTTP/1.1") else 0
                self.seen.counts["hostile"] += 1
                if status not in expected:
                    self.seen.wrong.append(f"{sent[0][:80]!r}: {status}, expected one of {expected}")
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.5)

    async def _throw(self, pieces: list[bytes]) -> bytes:
        """What comes back; none of it if the pieces end before the request does."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        raw = b""
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            async with asyncio.timeout(0.3 if pieces[-1] == b"" else 20):
                raw = await reader.read()
        except (TimeoutError, ConnectionError):
            pass
        finally:
            writer.close()
        return raw


def hostile(draw: random.Random) -> list[tuple[list[bytes], tuple[int, ...]]]:
    """Requests in pieces, and the statuses that they may get; 0: the connection ends without any."""
    bodies = [b"{", b"[]", b"\xff\xfe", b'{"messages": 5}', b'{"messages": [{}]}', b"[" * 100_000,
              b'{"messages": [], "temperature": NaN}', draw.randbytes(2000)]  # fmt: skip
    broken = [([request("POST", CHAT, raw=body)], (400,)) for body in bodies]
    big = request("POST", CHAT, raw=b"", headers={"Content-Length": str(10**12)})
    half = request("POST", CHAT, raw=b'{"mess', headers={"Content-Length": "4000"})
    form = request("POST", CHAT, raw=b"a=b", headers={"Content-Type": "application/x-www-form-urlencoded"})
    wide = request("GET", "/health", headers={"X-Wide": "x" * 200_000})
    foreign = request("POST", CHAT, ASKED[CHAT], {"Origin": "http://evil.example"})
    found = [
        *broken,
        ([big], (413,)),
        ([half, b""], (0,)),
        ([form], (415,)),
        ([wide], (400, 431, 0)),
        ([foreign], (403,)),
        ([b"\x16\x03\x01" + draw.randbytes(300) + b"\r\n\r\n"], (400, 0)),
    ]
    if draw.random() < 0.1:  # 66 MB in pieces that don't say how many will come
        head = request("POST", CHAT, raw=b"", headers={"Content-Length": "", "Transfer-Encoding": "chunked"})
        piece = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
        found.append(([head, *[piece] * 66], (413, 0)))
    return found


def content(path: str, reply: Reply) -> str:
    """The text of a stream."""
    if path == "/v1/completions":
        chunks = [data for _, data in events(reply.text) if data != "[DONE]"]
        return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    read = {CHAT: read_chat, "/v1/messages": read_messages, "/v1/responses": read_responses}[path]
    return read(reply.text).content


def whole_content(path: str, answer: Any) -> str:
    """The text of a plain answer."""
    if path == "/v1/responses":
        return str(answer["output"][-1]["content"][0]["text"])
    if path == "/v1/messages":
        return str(answer["content"][-1]["text"])
    (choice,) = answer["choices"]
    return str(choice["text"] if path == "/v1/completions" else choice["message"]["content"])


def script(turns: int) -> str:
    return "\n".join(json.dumps(turn(number)) for number in range(turns))

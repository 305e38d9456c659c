"""What the server counts and logs: one line per request, never a word of a prompt or an answer."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from dsv4_mlx.scheduler.engine_thread import EngineThread

log = logging.getLogger("dsv4_mlx.server")
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_RATES = (1, 2, 5, 10, 15, 20, 30, 40, 60, 80, 120, 250, 500, 1000, 2500)


@dataclass(frozen=True)
class TurnFigures:
    """One model turn: tokens of its prompt, of them known before, sampled; time.monotonic() when it began and
    at its first token; how it ended."""

    prompt: int
    cached: int
    new: int
    began: float
    first_token: float | None
    ended: str | None


class Histogram:
    """A Prometheus histogram."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        at = next((i for i, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))
        self.counts[at] += 1
        self.total += value

    def lines(self, name: str, help: str) -> list[str]:
        out, below = [f"# HELP {name} {help}", f"# TYPE {name} histogram"], 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            below += count
            out.append(f'{name}_bucket{{le="{bound}"}} {below}')
        return [*out, f"{name}_sum {self.total:.6g}", f"{name}_count {below}"]


class Metrics:
    """Used by the event loop alone."""

    def __init__(self) -> None:
        self.started = time.time()
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.first_token = Histogram(_SECONDS)
        self.decode = Histogram(_RATES)
        self.cancelled = 0

    def request(self, request_id: str, method: str, path: str, status: int, agent: str, detail: str) -> None:
        """Count and log one request. `path` is one of ours, or "other"."""
        self.requests[path, status] += 1
        log.info("%s %s %s %d %s%s", request_id, method, path, status, escaped(agent)[:60] or "-", detail)

    def turn(self, turn: TurnFigures) -> str:
        """Count one turn; what the log says of it."""
        if turn.ended == "client_disconnected":
            self.cancelled += 1
        said = f" prompt={turn.prompt} cached={turn.cached} new={turn.new} end={turn.ended}"
        if turn.first_token is None:
            return said
        waited, seconds = turn.first_token - turn.began, time.monotonic() - turn.first_token
        self.first_token.add(waited)
        said += f" ttft={waited:.2f}s"
        if turn.new > 1 and seconds > 0:
            rate = (turn.new - 1) / seconds
            self.decode.add(rate)
            said += f" {rate:.1f} tok/s"
        return said

    def metrics(self, worker: EngineThread) -> str:
        """Prometheus text."""
        stats = worker.stats()
        out = _counter("dsv4_requests_total", "Requests answered.")
        for (path, status), count in sorted(self.requests.items()):
            out.append(f'dsv4_requests_total{{api="{path}",code="{status}"}} {count}')
        for name, help, value in (
            ("dsv4_num_requests_running", "Turns under way.", stats.active),
            ("dsv4_num_requests_waiting", "Turns in the queue.", stats.queued),
            ("dsv4_sessions", "Live sessions.", stats.sessions),
            ("dsv4_session_tokens", "Tokens in live sessions.", stats.session_tokens),
            ("dsv4_cache_bytes", "Memory of live sessions.", stats.session_bytes),
            ("dsv4_up", "1 if the engine takes requests.", int(worker.state == "ready")),
        ):
            out += [f"# HELP {name} {help}", f"# TYPE {name} gauge", f"{name} {value}"]
        out += _counter("dsv4_prompt_tokens_total", "Prompt tokens, by where they came from.")
        out.append(f'dsv4_prompt_tokens_total{{source="cache"}} {stats.cached_tokens}')
        out.append(
            f'dsv4_prompt_tokens_total{{source="compute"}} {stats.prompt_tokens - stats.cached_tokens}'
        )
        for name, help, value in (
            ("dsv4_generation_tokens_total", "Tokens sampled.", stats.generated_tokens),
            ("dsv4_evictions_total", "Sessions given up for others.", stats.evictions),
            ("dsv4_device_failures_total", "Steps that the device failed.", stats.failures),
            ("dsv4_refused_total", "Turns refused by a full queue.", stats.refused),
            ("dsv4_cancellations_total", "Clients that left before the end.", self.cancelled),
        ):
            out += [*_counter(name, help), f"{name} {value}"]
        out += ["# HELP dsv4_memory_bytes Memory of the engine, by kind.", "# TYPE dsv4_memory_bytes gauge"]
        out += [f'dsv4_memory_bytes{{kind="{kind}"}} {count}' for kind, count in sorted(stats.memory.items())]
        out += _paging(stats.paging)
        out += self.first_token.lines("dsv4_ttft_seconds", "From the request to its first token.")
        out += self.decode.lines("dsv4_decode_tokens_per_second", "Tokens per second after the first.")
        return "\n".join(out) + "\n"


def _paging(sums: Mapping[str, float]) -> list[str]:
    """Where experts came from, if they are read from disk."""
    if not sums:
        return []
    name = "dsv4_paging_experts_total"
    out = _counter(name, "Experts that layers needed: in memory, on their way already, or to be read.")
    for source, key in (("memory", "hits"), ("early", "early"), ("disk", "misses")):
        out.append(f'{name}{{source="{source}"}} {sums[key]:.0f}')
    for name, help, value in (
        ("dsv4_paging_layer_runs_total", "Runs of a layer whose experts are paged.", f"{sums['runs']:.0f}"),
        (
            "dsv4_paging_advised_reads_total",
            "Reads of experts before they were needed.",
            f"{sums['advised']:.0f}",
        ),
        ("dsv4_paging_read_bytes_total", "Bytes read of experts.", f"{sums['bytes']:.0f}"),
        (
            "dsv4_paging_stall_seconds_total",
            "Time in which a read kept the model waiting.",
            f"{sums['stall']:.6f}",
        ),
    ):
        out += [*_counter(name, help), f"{name} {value}"]
    return out


def escaped(text: str) -> str:
    """`text` without characters that could forge a line of a log or command a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _counter(name: str, help: str) -> list[str]:
    return [f"# HELP {name} {help}", f"# TYPE {name} counter"]

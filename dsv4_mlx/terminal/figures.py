"""Numbers for people."""

from __future__ import annotations

from dsv4_mlx.terminal.answering import Answering

ENDINGS = {
    "stop": "ended by the model",
    "length": "cut off by the limit of tokens",
    "interrupted": "stopped by you",
    "error": "ended by an error",
}


def amount(count: float) -> str:
    """Bytes, decimal, as disks are sold."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def span(seconds: float) -> str:
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def rate(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def thought(answering: Answering) -> str:
    """The line that thinking collapses to."""
    return f"thought for {span(answering.thinking_for)}, {answering.message.thinking_tokens:,} tokens"


def stats(answering: Answering) -> str:
    message = answering.message
    lines = [
        f"prompt    {answering.prompt_tokens:,} tokens: {answering.reused:,} known already, "
        f"{answering.prefill_done:,} computed at {rate(answering.prefill_rate)} tokens/s",
        f"answer    {message.tokens:,} tokens at {rate(answering.decode_rate)} tokens/s, "
        f"{ENDINGS[message.ending]}",
    ]
    if message.thinking:
        lines.append(f"thinking  {span(message.thinking_seconds)}, {message.thinking_tokens:,} tokens")
    if answering.first_token is not None:
        lines.append(f"waited    {span(answering.first_token - answering.started)} for the first token")
    if answering.memory:
        lines.append(f"memory    {amount(answering.memory)}")
    if answering.experts:
        lines.append(f"experts   {answering.experts.removeprefix('experts ')}")
    return "\n".join(lines)

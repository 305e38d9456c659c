"""The same for mlx_lm.server: what it adds to a token of its own bare loop, on a llama of one tiny layer.

    python -m bench.against.http [--tokens 600] [--passes 5]

Beside `python -m bench.http_overhead`: neither number holds a model worth the name, so they show what each
server costs, not how fast a model is. mlx_lm.server runs as a process of its own; CPU is read from /proc
(Linux only).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm import load, stream_generate
from mlx_lm.models.llama import Model, ModelArgs

from bench.http_overhead import DEMO

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "vocab_size": 1792,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "eos_token_id": 1791,
}


def write_llama(folder: Path) -> None:
    model = Model(ModelArgs.from_dict(CONFIG))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shutil.copy(DEMO / "tokenizer.json", folder)
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokens = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))


def process_cpu(pid: int) -> float:
    """CPU seconds of a process so far, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(port: int, tokens: int) -> tuple[float, int]:
    """Wall seconds of one streamed answer, and the events that carried text."""
    body = {"messages": [{"role": "user", "content": "go on"}], "stream": True, "max_tokens": tokens}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        begun = time.perf_counter()
        count = sum(line.startswith(b"data: {") for line in answer)
    return time.perf_counter() - begun, count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--passes", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_llama(folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = subprocess.Popen(
            [sys.executable, "-m", "mlx_lm", "server", "--model", name, "--port", str(port)],
            stderr=subprocess.DEVNULL,
        )
        try:
            measure(folder, server.pid, port, options.tokens, options.passes)
        finally:
            server.terminate()
            server.wait()


def measure(folder: Path, pid: int, port: int, tokens: int, passes: int) -> None:
    model, tokenizer = load(str(folder))[:2]
    for _ in range(300):
        try:
            ask(port, 4)
            break
        except urllib.error.URLError:
            time.sleep(0.2)
    alone, through, events = [], [], 0
    for _ in range(passes):
        wall, cpu = time.perf_counter(), time.process_time()
        count = sum(1 for _ in stream_generate(model, tokenizer, [9] * 8, max_tokens=tokens))
        alone.append(((time.perf_counter() - wall) / count * 1e6, (time.process_time() - cpu) / count * 1e6))
        cpu = process_cpu(pid)
        wall, events = ask(port, tokens)
        through.append((wall / tokens * 1e6, (process_cpu(pid) - cpu) / tokens * 1e6))
    medians = [[statistics.median(one[i] for one in found) for i in (0, 1)] for found in (alone, through)]
    found = {
        name: {"wall": wall, "cpu": cpu}
        for name, (wall, cpu) in zip(("bare", "served"), medians, strict=True)
    }
    added = {key: found["served"][key] - found["bare"][key] for key in ("wall", "cpu")}
    report = {"tokens": tokens, "events": events, "microseconds_per_token": {**found, "added": added}}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

"""What serving adds to a token: this program beside mlx_lm.server, in one run.

    python -m bench.against.http [--tokens 600] [--passes 5] [--out bench/results/http_overhead.json]

Four kinds of passes take turns: our bare loop, our server, mlx_lm's bare loop, its server. Neither bare loop
holds a model worth the name (a script here, a llama of one tiny layer there), so the figures show what each
server costs, not how fast a model is. Wall is the client's, which is another process for both; CPU is the
server's, all its threads. mlx_lm.server's CPU is read from /proc (Linux only).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
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

from bench.http_overhead import DEMO, bare, start, stream
from dsv4_mlx.scheduler.replay import ScriptedTurn

Costs = tuple[float, float]  # seconds of a token: wall, CPU

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


def ask(port: int, tokens: int) -> None:
    """A short answer, to know that the server is there."""
    body = {"messages": [{"role": "user", "content": "go on"}], "max_tokens": tokens}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        answer.read()


class Theirs:
    """mlx_lm.server as a process, and mlx_lm in this one."""

    def __init__(self, folder: Path, tokens: int) -> None:
        self.tokens = tokens
        self.model, self.tokenizer = load(str(folder))[:2]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(folder), "--port", str(self.port)]
        self.server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        for _ in range(300):
            try:
                ask(self.port, 4)
                break
            except urllib.error.URLError:
                time.sleep(0.2)

    def bare(self) -> Costs:
        wall, cpu = time.perf_counter(), time.process_time()
        count = sum(1 for _ in stream_generate(self.model, self.tokenizer, [9] * 8, max_tokens=self.tokens))
        return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count

    def served(self) -> Costs:
        cpu = process_cpu(self.server.pid)
        wall, count = stream(f"http://127.0.0.1:{self.port}", self.tokens)
        return wall / count, (process_cpu(self.server.pid) - cpu) / count

    def end(self) -> None:
        self.server.terminate()
        self.server.wait()


class Ours:
    def __init__(self, tokens: int) -> None:
        self.turn = ScriptedTurn("the script", content=" and" * tokens)
        self.tokens = tokens
        self.url, self.end = start(self.turn)

    def bare(self) -> Costs:
        wall, cpu, count = bare(self.turn)
        return wall / count, cpu / count

    def served(self) -> Costs:
        cpu = time.process_time()
        wall, _ = stream(self.url, self.tokens)
        return wall / self.tokens, (time.process_time() - cpu) / self.tokens


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    passes: dict[str, list[Costs]] = {}
    with tempfile.TemporaryDirectory() as name:
        write_llama(Path(name))
        both: dict[str, Ours | Theirs] = {
            "dsv4-mlx": Ours(options.tokens),
            "mlx_lm.server": Theirs(Path(name), options.tokens),
        }
        try:
            for _ in range(options.passes + 1):
                for program, one in both.items():
                    passes.setdefault(f"{program} bare", []).append(one.bare())
                    passes.setdefault(f"{program} served", []).append(one.served())
        finally:
            for one in both.values():
                one.end()
    report = {
        "tokens": options.tokens,
        "passes": options.passes,
        "load average": round(os.getloadavg()[0], 1),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, shared",
        "microseconds per token": {program: added(passes, program) for program in both},
    }
    text = json.dumps(report, indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def added(passes: dict[str, list[Costs]], program: str) -> dict[str, dict[str, float]]:
    """Medians of the passes after the first, and what lies between them; the least of each beside it."""
    found: dict[str, dict[str, float]] = {}
    for i, kind in enumerate(("wall", "cpu")):
        bare_, served = (
            [one[i] * 1e6 for one in passes[f"{program} {how}"][1:]] for how in ("bare", "served")
        )
        medians = statistics.median(bare_), statistics.median(served)
        found[kind] = {
            "bare": round(medians[0], 1),
            "served": round(medians[1], 1),
            "added": round(medians[1] - medians[0], 1),
            "added, least of each": round(min(served) - min(bare_), 1),
        }
    return found


if __name__ == "__main__":
    main()

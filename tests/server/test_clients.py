"""Agents and libraries that are too heavy for every run, against a replayed model.

They are used where they are installed: agents from npm in the folder that CLIENTS_NPM names
(`npm install @anthropic-ai/claude-code @openai/codex opencode-ai`), Python libraries in the environment that
CLIENTS_VENV names (`pip install litellm langchain-openai langchain-deepseek langchain-anthropic llm`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server.conftest import Replayed

pytestmark = pytest.mark.long

Replay = Callable[..., Replayed]
DONE = {"reasoning": "fine", "content": "All done here."}
TIMEOUT = 300


@pytest.fixture(scope="session", autouse=True)
def given() -> dict[str, str]:
    """Where the clients are."""
    return {name: os.environ.get(name, "") for name in ("CLIENTS_NPM", "CLIENTS_VENV")}


def calling(name: str, **arguments: str) -> dict[str, Any]:
    return {"reasoning": "look", "tool_calls": [{"name": name, "arguments": arguments}]}


AGENTS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "claude": (
        [calling("Bash", command="echo ran > proof.txt", description="write"), DONE],
        ["claude", "-p", "write the proof", "--settings", "{home}/.claude/dsv4-mlx.json",
         "--allowedTools", "Bash"],
    ),
    "codex": (
        [calling("exec_command", cmd="echo ran > proof.txt"), DONE],
        ["codex", "exec", "--profile", "dsv4-mlx", "--skip-git-repo-check",
         "--dangerously-bypass-approvals-and-sandbox", "write the proof"],
    ),
    "opencode": (
        # it asks for a title first
        [{"content": "A title"}, calling("bash", command="echo ran > proof.txt"), DONE],
        ["opencode", "run", "write the proof"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_runs_a_tool_and_ends(
    replay: Replay, tmp_path: Path, given: dict[str, str], agent: str
) -> None:
    """Configured by `connect --write`, offline."""
    program = Path(given["CLIENTS_NPM"]) / "node_modules" / ".bin" / agent
    if not program.exists():
        pytest.skip(f"{agent} is not installed in CLIENTS_NPM")
    turns, command = AGENTS[agent]
    running = replay(*turns)
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir(parents=True)
    environment = {
        **os.environ,
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "XDG_DATA_HOME": str(home / ".local" / "share"),
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "CI": "1",
        "PWD": str(work),  # opencode trusts it more than where it is
    }
    connect = [sys.executable, "-m", "dsv4_mlx", "connect", agent, "--url", running.url, "--write"]
    subprocess.run(connect, env=environment, check=True, capture_output=True)
    filled = [part.replace("{home}", str(home)) for part in command]
    done = subprocess.run(
        filled,
        env=environment,
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    said = done.stdout + done.stderr
    assert (work / "proof.txt").read_text().strip() == "ran", said
    assert done.returncode == 0 and "All done here." in said, said
    stats = running.worker.stats()
    assert stats.cached_tokens > stats.prompt_tokens // 3, "the second turn goes on from the first"


LIBRARIES = {
    "litellm": """
import litellm
asked = {"api_key": "x", "messages": [{"role": "user", "content": "q"}]}
said = litellm.completion(model="openai/m", api_base=URL + "/v1", **asked)
assert said.choices[0].message.content == "All done here.", said
assert said.choices[0].message.reasoning_content == "fine", said
pieces = litellm.completion(model="deepseek/m", api_base=URL, stream=True, **asked)
assert "".join(p.choices[0].delta.content or "" for p in pieces) == "All done here."
said = litellm.completion(model="anthropic/m", api_base=URL, **asked)
assert said.choices[0].message.content == "All done here.", said
""",
    "langchain_openai": """
from langchain_openai import ChatOpenAI, OpenAI
chat = ChatOpenAI(model="m", base_url=URL + "/v1", api_key="x")
assert chat.invoke("q").content == "All done here."
assert "".join(piece.content for piece in chat.stream("q")) == "All done here."
assert OpenAI(model="m", base_url=URL + "/v1", api_key="x").invoke("q")
""",
    "langchain_deepseek": """
from langchain_deepseek import ChatDeepSeek
said = ChatDeepSeek(model="m", api_base=URL + "/v1", api_key="x").invoke("q")
assert said.content == "All done here." and said.additional_kwargs["reasoning_content"] == "fine", said
""",
    "langchain_anthropic": """
from langchain_anthropic import ChatAnthropic
said = ChatAnthropic(model="m", base_url=URL, api_key="x").invoke("q")
assert said.content[-1]["text"] == "All done here.", said
""",
    "llm": """
import pathlib, os, llm
folder = pathlib.Path(os.environ["LLM_USER_PATH"])
folder.mkdir(parents=True)
settings = f"- model_id: local\\n  model_name: m\\n  api_base: {URL}/v1\\n"
(folder / "extra-openai-models.yaml").write_text(settings)
model = llm.get_model("local")
model.key = "x"
assert model.prompt("q").text() == "All done here."
assert model.prompt("q", stream=False).text() == "All done here."
""",
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library(replay: Replay, tmp_path: Path, given: dict[str, str], library: str) -> None:
    python = Path(given["CLIENTS_VENV"]) / "bin" / "python"
    if (
        not python.exists()
        or subprocess.run([python, "-c", f"import {library}"], capture_output=True).returncode
    ):
        pytest.skip(f"{library} is not installed in CLIENTS_VENV")
    running = replay(DONE)
    environment = {
        **os.environ,
        "LLM_USER_PATH": str(tmp_path / "llm"),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    code = f"URL = {json.dumps(running.url)}\n{LIBRARIES[library]}"
    done = subprocess.run(
        [python, "-c", code], env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stderr[-3000:]


NODE = {
    "openai": """
import OpenAI from "openai";
const ai = new OpenAI({ baseURL: URL_ + "/v1", apiKey: "x", maxRetries: 0 });
const messages = [{ role: "user", content: "q" }];
const said = await ai.chat.completions.create({ model: "m", messages });
if (said.choices[0].message.content !== "All done here.") throw new Error(JSON.stringify(said));
const stream = ai.chat.completions.stream({ model: "m", messages, stream_options: { include_usage: true } });
if ((await stream.finalContent()) !== "All done here.") throw new Error("stream");
const response = await ai.responses.create({ model: "m", input: "q" });
if (response.output_text !== "All done here.") throw new Error(JSON.stringify(response));
let text = "";
for await (const event of await ai.responses.create({ model: "m", input: "q", stream: true }))
  if (event.type === "response.output_text.delta") text += event.delta;
if (text !== "All done here.") throw new Error(text);
try { await ai.chat.completions.create({ model: "m", messages, temperature: 9 }); throw new Error("taken"); }
catch (error) { if (error.status !== 400) throw error; }
""",
    "@anthropic-ai/sdk": """
import Anthropic from "@anthropic-ai/sdk";
const ai = new Anthropic({ baseURL: URL_, apiKey: "x", maxRetries: 0 });
const asked = { model: "m", max_tokens: 100, messages: [{ role: "user", content: "q" }] };
const said = await ai.messages.create(asked);
if (said.content.at(-1).text !== "All done here.") throw new Error(JSON.stringify(said));
const final = await ai.messages.stream(asked).finalMessage();
if (final.content.at(-1).text !== "All done here.") throw new Error(JSON.stringify(final));
if ((await ai.messages.countTokens(asked)).input_tokens < 1) throw new Error("count");
""",
}


@pytest.mark.parametrize("package", NODE)
def test_a_node_client(replay: Replay, tmp_path: Path, given: dict[str, str], package: str) -> None:
    modules = Path(given["CLIENTS_NPM"]) / "node_modules"
    if not (modules / package).is_dir():
        pytest.skip(f"{package} is not installed in CLIENTS_NPM")
    running = replay(DONE)
    (tmp_path / "node_modules").symlink_to(modules)
    script = tmp_path / "client.mjs"
    script.write_text(f"{NODE[package]}".replace("URL_", json.dumps(running.url)))
    done = subprocess.run(
        ["node", str(script)], capture_output=True, text=True, timeout=TIMEOUT, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]

"""What `connect` prints and writes, checked with the formats' own readers."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
import yaml
from server.client import call
from server.conftest import Start

from dsv4_mlx.cli.connect import CLIENTS, Server, ask_server, put
from dsv4_mlx.errors import InputError, MachineError, UsageError
from dsv4_mlx.server.options import ServerOptions
from dsv4_mlx.tokenizer.template import Spelling

SERVER = Server("http://127.0.0.1:8080", "deepseek-v4-flash", 65536, "local")
READERS: dict[str, Any] = {"continue": yaml.safe_load, "codex": tomllib.loads}


def text(client: str, old: str | None = None) -> str:
    return CLIENTS[client].added(old, SERVER)


def settings(client: str, old: str | None = None) -> Any:
    return READERS.get(client, json.loads)(text(client, old))


def test_opencode() -> None:
    found = settings("opencode")
    model = found["provider"]["dsv4-mlx"]["models"]["deepseek-v4-flash"]
    assert found["provider"]["dsv4-mlx"]["options"]["baseURL"] == "http://127.0.0.1:8080/v1"
    assert model["limit"] == {"context": 65536, "output": 32000}
    assert model["interleaved"] == {"field": "reasoning_content"}
    assert found["model"] == "dsv4-mlx/deepseek-v4-flash"


def test_the_others_name_address_model_and_context() -> None:
    codex = settings("codex")
    assert codex["model_providers"][codex["model_provider"]]["wire_api"] == "responses"
    assert codex["model_context_window"] == 65536
    claude = settings("claude")["env"]
    assert claude["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:8080"
    assert claude["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] == "65536"
    zed = settings("zed")["language_models"]["openai_compatible"]["dsv4-mlx"]
    assert zed["api_url"].endswith("/v1") and zed["available_models"][0]["max_tokens"] == 65536
    models = settings("continue")["models"]
    assert [model["roles"] for model in models] == [["chat", "edit", "apply", "summarize"], ["autocomplete"]]
    assert models[0]["apiBase"] == "http://127.0.0.1:8080/v1"


def test_continues_completion_fills_in_the_middle(start: Start, spelling: Spelling) -> None:
    """Its provider `deepseek` posts prompt and suffix to new URL("beta/completions", apiBase), by
    core/llm/llms/Deepseek.ts of continuedev/continue; `openai` would spell markers, which are text here."""
    running = start()
    entry = yaml.safe_load(CLIENTS["continue"].added(None, Server(running.url, "m", 4096, "k")))["models"][1]
    assert entry["provider"] == "deepseek" and entry["apiBase"].endswith("/")
    address = urllib.parse.urljoin(entry["apiBase"], "beta/completions")
    body = {
        "model": entry["model"], "prompt": "a", "suffix": "b", "max_tokens": 1, "temperature": 0.01,
        "stop": ["\n\n"], "stream": True,
    }  # fmt: skip
    assert call(running.port, "POST", urllib.parse.urlsplit(address).path, body).status == 200
    markers = [spelling.id(f"<｜fim▁{name}｜>") for name in ("begin", "hole", "end")]
    prompt = running.worker.jobs[0].prompt
    assert [id for id in prompt if id in markers] == markers and len(prompt) == 6


@pytest.mark.parametrize("client", ["opencode", "zed", "claude"])
def test_json_of_others_stays(client: str) -> None:
    old = {"theme": "dark", "env": {"A": "1"}, "provider": {"x": {"y": 1}}, "language_models": {"z": {}}}
    new = settings(client, json.dumps(old))
    assert new["theme"] == "dark" and new["env"]["A"] == "1" and new["provider"]["x"] == {"y": 1}
    assert list(new)[:4] == list(old)
    assert text(client, text(client)) == text(client)


@pytest.mark.parametrize("client", ["opencode", "zed", "claude"])
@pytest.mark.parametrize("old", ['{"a": 1, // a comment\n}', "[1]", "{"])
def test_what_is_not_plain_json_is_left_alone(client: str, old: str) -> None:
    with pytest.raises(InputError, match="plain JSON"):
        text(client, old)


@pytest.mark.parametrize(
    "old",
    [
        "name: Mine\nversion: 1.0.0\nmodels:\n  - name: a # my own\n    provider: x\n    model: y\n"
        "rules: []\n",
        "name: Mine\nmodels:\n- name: a\n  provider: x\n  model: y\n",
        "name: Mine\nversion: 1.0.0\n",
        "name: Mine\nmodels: # none yet\n",
    ],
)
def test_yaml_of_others_stays(old: str) -> None:
    new = text("continue", old)
    before, after = yaml.safe_load(old), yaml.safe_load(new)
    assert after["name"] == "Mine" and len(after["models"]) == 2 + len(before.get("models") or [])
    assert "# my own" in new or "# my own" not in old
    assert text("continue", new) == new
    moved = CLIENTS["continue"].added(new, Server("http://other:1", "m", 5, "k"))
    assert len(yaml.safe_load(moved)["models"]) == len(after["models"]) and "127.0.0.1" not in moved


def test_yaml_that_is_not_understood_is_left_alone() -> None:
    with pytest.raises(InputError):
        text("continue", "models: [{name: a}]\n")


def test_put_shows_a_diff_and_keeps_the_old(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep" / "opencode.json"
    put(path, CLIENTS["opencode"], SERVER)
    assert path.stat().st_mode & 0o777 == 0o600
    old = '{"theme": "dark"}'
    path.write_text(old)
    path.chmod(0o644)
    put(path, CLIENTS["opencode"], SERVER)
    said = capsys.readouterr()
    assert '-{"theme": "dark"}' in said.out and '+  "theme": "dark"' in said.out
    (backup,) = path.parent.glob("opencode.json.backup-*")
    assert backup.read_text() == old and path.stat().st_mode & 0o777 == 0o644
    put(path, CLIENTS["opencode"], SERVER)
    assert len(list(path.parent.iterdir())) == 2, "nothing to change: no second backup"


def test_put_leaves_a_bad_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text("{ // mine\n}")
    with pytest.raises(InputError):
        put(path, CLIENTS["zed"], SERVER)
    assert path.read_text() == "{ // mine\n}" and len(list(tmp_path.iterdir())) == 1


def test_ask_server(start: Start) -> None:
    running = start(options=ServerOptions(port=0, api_key="k"), context=2048)
    found = ask_server(running.url, "k")
    assert (found.model, found.context, found.key) == ("deepseek-v4-flash", 2048, "k")
    with pytest.raises(UsageError, match="API key"):
        ask_server(running.url, None)
    with pytest.raises(MachineError, match="no server"):
        ask_server("http://127.0.0.1:9", None)
    with pytest.raises(UsageError):
        ask_server("127.0.0.1:8080", None)


def test_command(start: Start, home: Path) -> None:
    running = start()
    command = [sys.executable, "-m", "dsv4_mlx", "connect"]
    shown = subprocess.run([*command, "codex", "--url", running.url], capture_output=True, text=True)
    assert shown.returncode == 0 and tomllib.loads(shown.stdout)["model"] == "deepseek-v4-flash"
    wrong = subprocess.run([*command, "emacs"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ")

"""What others wrote to judge such a server: the SDKs' tests of their resources, and a fuzzer of OpenAPI.

They are used where they are. CLIENTS_SDKS names a folder with the unpacked sources of both SDKs
(`pip download --no-deps --no-binary :all: openai anthropic`), CLIENTS_SDKS_VENV an environment with what
their tests need (`pip install openai[aiohttp] anthropic[aiohttp] pytest pytest-asyncio pytest-xdist respx
http-snapshot rich`), CLIENTS_VENV one with schemathesis.
"""

from __future__ import annotations

import os
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from server.conftest import Replayed

pytestmark = pytest.mark.long

Replay = Callable[..., Replayed]
SAYS = {"content": "hello there"}

# What a test of theirs that fails may say, and why it does. docs/server.md has the same list.
REASONS = {
    "openai": {
        r"404 - .*stores no responses|404 - .*there is nothing at .*/chat/completions/": "stored answers",
        r"405 - .*'/v1/chat/completions' takes POST": "stored answers",
        r"404 - .*there is nothing at .*/responses/": "stored answers",
        r"404 - .*there is no model|405 - .*/models/": "another model",
        r"400 - .*previous_response_id|400 - .*conversation": "stored answers",
        r"400 - .*logit_bias": "a bias for what is no token id",
        r"400 - echo and suffix": "echo with suffix",
        r"400 - .*can't do what it asks for": "audio, searches, stored prompts",
    },
    "anthropic": {
        r"404 - .*there is no model": "another model",
        r"400 - .*(schema|tool)": "a schema that is none",
    },
}
FILES = {
    "openai": (
        ["chat/test_completions.py", "test_completions.py", "test_models.py", "test_responses.py"],
        "not batch",
    ),
    "anthropic": (["test_messages.py", "test_models.py"], "not batch"),
}


@pytest.fixture(scope="session", autouse=True)
def given() -> dict[str, str]:
    """Where the tools are."""
    names = ("CLIENTS_SDKS", "CLIENTS_SDKS_VENV", "CLIENTS_VENV")
    return {name: os.environ.get(name, "") for name in names}


@pytest.mark.parametrize("sdk", FILES)
def test_resource_tests_of_an_sdk(
    replay: Replay,
    tmp_path: Path,
    given: dict[str, str],
    record_property: Callable[[str, object], None],
    sdk: str,
) -> None:
    found = sorted(Path(given["CLIENTS_SDKS"] or ".").glob(f"{sdk}-*/tests/api_resources"))
    python = Path(given["CLIENTS_SDKS_VENV"]) / "bin" / "python"
    if not found or not given["CLIENTS_SDKS"] or not python.is_file():
        pytest.skip(f"CLIENTS_SDKS and CLIENTS_SDKS_VENV name no sources of {sdk} and nothing to run them")
    running, report = replay(SAYS), tmp_path / "report.xml"
    files, chosen = FILES[sdk]
    command = [str(python), "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += [f"tests/api_resources/{name}" for name in files] + ["-k", chosen]
    base = running.url + ("/v1" if sdk == "openai" else "")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"TEST_API_BASE_URL": base}
    done = subprocess.run(
        command, cwd=found[-1].parents[1], env=environment, capture_output=True, text=True, timeout=600
    )
    assert report.is_file(), done.stdout[-2000:] + done.stderr[-2000:]
    outcomes: Counter[str] = Counter()
    unknown = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        failed = [one for kind in ("failure", "error") for one in case.findall(kind)]
        said = " ".join(f"{one.get('message')} {one.text}" for one in failed)
        why = next((why for text, why in REASONS[sdk].items() if re.search(text, said)), None)
        if case.find("skipped") is not None:
            outcomes["skipped"] += 1
        elif not failed:
            outcomes["passed"] += 1
        elif why is not None:
            outcomes[why] += 1
        else:
            unknown.append(f"{case.get('name')}: {failed[0].get('message')}")
    record_property(found[-1].parents[1].name, dict(outcomes))
    assert not unknown, unknown[:10]
    assert outcomes["passed"] > 50


def test_schemathesis(
    replay: Replay,
    tmp_path: Path,
    given: dict[str, str],
    record_property: Callable[[str, object], None],
) -> None:
    tool = Path(given["CLIENTS_VENV"]) / "bin" / "schemathesis"
    if not given["CLIENTS_VENV"] or not tool.is_file():
        pytest.skip("CLIENTS_VENV names no environment with schemathesis")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [str(tool), "run", replay(SAYS).url + "/openapi.json", "--checks", checks]
    command += ["--max-examples", "40", "--phases", "examples,coverage,fuzzing"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    cases = re.search(r"(\d+) generated, .*", done.stdout)
    record_property("cases", cases[0] if cases else "none")
    assert done.returncode == 0, done.stdout[-4000:]
    assert cases and int(cases[1]) > 100 and "9 selected / 9 total" in done.stdout

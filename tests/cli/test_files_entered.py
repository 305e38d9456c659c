"""How many files a prompt enters on its way to a text: a reader has to know each of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from dsv4_mlx.hub.models import model_folder

ROOT = Path(__file__).parents[2]

# Functions of the project that are called; bodies of classes and modules, lambdas and what runs while a
# module is imported are left out.
PROBE = """
import json, sys, threading
ROOT, REPORT = sys.argv.pop(1), sys.argv.pop(1)
BODIES = ("<module>", "<lambda>", "<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")
entered = set()

def seen(frame, event, argument):
    code = frame.f_code
    if event != "call" or not code.co_filename.startswith(ROOT) or code.co_name in BODIES:
        return
    if not code.co_flags & 2 or frame.f_back is None or frame.f_back.f_code.co_name == "<module>":
        return
    entered.add(code.co_filename)

from dsv4_mlx.cli.main import main
threading.setprofile(seen)
sys.setprofile(seen)
try:
    main()
finally:
    sys.setprofile(None)
    open(REPORT, "w").write(json.dumps(sorted(entered)))
"""


def entered(report: Path, *arguments: str) -> list[str]:
    """Files of dsv4_mlx that a command enters, relative to it."""
    package = str(ROOT / "dsv4_mlx") + "/"
    command = [sys.executable, "-c", PROBE, package, str(report), *arguments]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return [file.removeprefix(package) for file in json.loads(report.read_text())]


def test_a_prompt_enters_few_files(tmp_path: Path) -> None:
    model_folder("demo")  # is converted by now
    asked = ("generate", "demo", "-p", "Why?", "--max-tokens", "3", "--think", "off")
    files = entered(tmp_path / "files", *asked)
    front = [file for file in files if not file.startswith(("ops/reference/", "model/"))]
    assert "engine/decode.py" in front and "model/attention.py" in files
    assert len(front) <= 36, front
    assert len(files) <= 60, files

"""What the documents say exists, exists."""

from __future__ import annotations

import ast
import functools
import json
import math
import re
import shlex
from pathlib import Path

import pytest
from generated_docs import COMMANDS_PAGE, agrees, blocks, commands, commands_page, documents, outputs, run
from typer.testing import CliRunner

from dsv4_mlx.cli.main import app

ROOT = Path(__file__).parent.parent
TOPS = ("dsv4_mlx", "convert", "metal", "tests", "bench", "docs")
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(page for top in ("docs", "tests", "bench", "metal") for page in (ROOT / top).rglob("*.md")),
    ]
)
COMMANDS = commands()
SHOWN = {
    command: shown
    for path in documents()
    for kind, block in blocks(path.read_text("utf-8"))
    if kind == "console"
    for command, shown in outputs(block)
    if shown
}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(r"(?<![\w./])(?:\w+/)*\w+\.py\b")
MACHINE = re.compile(r"(?<![\w.~/])/(?:home|Users|root|work|private|mnt|workspace)/\w+")


def commands_in(text: str) -> list[str]:
    """Lines of code blocks and whole inline code that call `dsv4-mlx`, `python -m dsv4_mlx` or `make`."""
    lines = []
    for kind, block in blocks(text):
        if kind in ("", "sh", "bash"):
            lines += [line.split("#")[0].strip() for line in block.splitlines()]
        elif kind == "console":
            lines += [command for command, _ in outputs(block)]
    lines += [code.strip() for code in re.findall(r"`([^`\n]+)`", text)]
    return [line for line in lines if re.match(r"(dsv4-mlx|make) \w", line)]


def check_command(line: str) -> None:
    """The command, its options and the number of its arguments exist. Raises AssertionError."""
    program, name, *rest = shlex.split(line)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert name in targets, f"{line!r}: the Makefile has no {name}"
        return
    assert name in COMMANDS, f"{line!r}: there is no command {name}"
    options = {option for p in COMMANDS[name].params for option in (*p.opts, *p.secondary_opts)} | {"--help"}
    for word in rest:
        if word.startswith("-") and not word.lstrip("-").isdigit():
            assert word.split("=")[0] in options, f"{line!r}: {name} has no option {word}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(path: Path) -> None:
    for line in commands_in(path.read_text("utf-8")):
        check_command(line)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(path: Path) -> None:
    for link in LINK.findall(path.read_text("utf-8")):
        if not re.match(r"[a-z]+:", link):
            file, _, section = link.partition("#")
            page = path.parent / file if file else path
            assert page.exists(), f"{path.name}: nothing at {link}"
            assert not section or section in sections(page.read_text("utf-8")), (
                f"{path.name}: nothing at {link}"
            )


def sections(text: str) -> list[str]:
    """Headings as links name them: "## While it runs" is "while-it-runs"."""
    return [
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.M)
    ]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_ends_with_an_example(name: str) -> None:
    text = COMMANDS[name].help or ""
    examples = re.findall(r"^Example: (.*)$", text, re.M)
    assert examples, f"dsv4-mlx {name} --help has no example"
    for example in examples:
        assert example.startswith(f"dsv4-mlx {name}")
        check_command(example)


def modules_docs() -> dict[Path, str]:
    """Every source file's docstring."""
    files = [*(ROOT / "dsv4_mlx").rglob("*.py"), *(ROOT / "convert").rglob("*.py")]
    return {path: ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "" for path in files}


def test_files_that_docstrings_name_exist() -> None:
    """`x.py` beside the file that names it, `room/x.py` by the end of its path."""
    files = [*modules_docs(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]
    ends = {"/".join(path.parts[-n:]) for path in files for n in (2, 3, 4)}
    wrong = [
        f"{path.relative_to(ROOT)} names {name}"
        for path, text in modules_docs().items()
        for name in FILE.findall(text)
        if name not in ends and not ("/" not in name and (path.parent / name).exists())
    ]
    assert not wrong, "\n".join(wrong)


def test_a_map_of_a_package_has_every_file() -> None:
    """A package whose docstring names three of its files has a map: a new file goes on it, too."""
    missing, maps = [], 0
    for path, text in modules_docs().items():
        known = {file.name for file in path.parent.glob("*.py")} - {"__init__.py", "__main__.py"}
        named = known & set(FILE.findall(text))
        if path.name == "__init__.py" and len(named) >= 3:
            maps += 1
            missing += [f"{path.relative_to(ROOT)}: {name} is not on it" for name in sorted(known - named)]
    assert maps >= 5 and not missing, "\n".join(missing)


def test_the_page_of_commands_is_their_help() -> None:
    assert COMMANDS_PAGE.read_text("utf-8") == commands_page(), "stale: make docs"


@pytest.mark.parametrize("command", SHOWN)
def test_an_output_is_what_the_command_writes(command: str) -> None:
    written = run(command)
    assert agrees(SHOWN[command], written), f"stale: make docs. {command!r} writes now:\n{written}"


def test_outputs_are_compared_line_by_line() -> None:
    [(first, shown), (second, none)] = outputs("$ echo a\na\n...\nb\n$ true\n")
    assert (first, second, none) == ("echo a", "true", "")
    assert agrees(shown, "a\nb") and agrees(shown, "a\n1\n2\nb\n") and run("echo a; echo b >&2") == "a\nb\n"
    assert not agrees(shown, "a\n1\n2\n") and not agrees("a.\n", "ab\n") and not agrees("", "a\n")
    with pytest.raises(ValueError, match="ends with 2"):
        run("dsv4-mlx frobnicate")


def test_nothing_names_a_machine() -> None:
    """No path of somebody's machine in anything that is shipped or read."""
    wrong = []
    suffixes = {".py", ".md", ".toml", ".yml", ".metal", ".h", ".json", ""}
    skipped = {".git", ".venv", "build", "dist", "__pycache__"}
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if not path.is_file() or path.suffix not in suffixes or path.name == Path(__file__).name:
            continue
        if any(part in skipped or part.endswith("_cache") or part == ".hypothesis" for part in parts):
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if MACHINE.search(line):
                wrong.append(f"{'/'.join(parts)}:{number}: {line.strip()[:80]}")
    assert not wrong, "\n".join(wrong)


def test_the_readme_starts_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    _, first = blocks(text)[0]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make test"]


def test_checks_can_fail() -> None:
    with pytest.raises(AssertionError, match="no command frobnicate"):
        check_command("dsv4-mlx frobnicate x")
    with pytest.raises(AssertionError, match="no option --loud"):
        check_command("dsv4-mlx info x --loud")
    with pytest.raises(AssertionError, match="no everything"):
        check_command("make everything")
    assert commands_in("```sh\nls\nmake demo  # x\n```\nand `dsv4-mlx info m`, `make`") == [
        "make demo",
        "dsv4-mlx info m",
    ]
    assert MACHINE.search("see /home/someone/x") and not MACHINE.search("~/home/x, https://x.org/home/page")


def test_the_index_lists_every_page_once() -> None:
    pages = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name != "index.md")
    linked = [
        link for link in LINK.findall((ROOT / "docs" / "index.md").read_text("utf-8")) if "/" not in link
    ]
    assert sorted(linked) == pages


def test_every_room_has_a_test_to_run() -> None:
    """CONTRIBUTING's table says of each room which tests prove a change there; they exist."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    named = " ".join(row[1] for row in rows)
    rooms = [
        path.parent for path in (ROOT / "dsv4_mlx").glob("*/__init__.py") if path.parent.name != "convert"
    ]
    assert len(rooms) > 15
    assert not [room.name for room in rooms if f"`dsv4_mlx/{room.name}" not in named]
    assert not [
        path for row in rows for path in re.findall(r"\btests/[\w./]+", row[2]) if not (ROOT / path).exists()
    ]


def named_files(text: str) -> set[str]:
    """Files in inline code, such as `paging/slots.py`, and folders of this repository; not NAME.py."""
    code = [name for name in re.findall(r"`([^`\s]+)`", text) if "NAME" not in name]
    files = {name for name in code if re.fullmatch(r"[\w./-]+\.(?:py|metal|h)", name)}
    return files | {name for name in code if re.fullmatch(rf"(?:{'|'.join(TOPS)})/[\w./-]*", name)}


@functools.cache
def repository() -> tuple[str, ...]:
    """Every file and folder, as `/tests/` and `/tests/test_docs.py`."""
    found = [path for top in TOPS for path in (ROOT / top, *(ROOT / top).rglob("*"))]
    return tuple(f"/{path.relative_to(ROOT).as_posix()}{'/' * path.is_dir()}" for path in found)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(path: Path) -> None:
    names = named_files(path.read_text("utf-8"))
    wrong = {
        name
        for name in names
        if not any(file.rstrip("/").endswith(f"/{name.rstrip('/')}") for file in repository())
    }
    assert not wrong


def test_a_file_that_is_gone_would_be_found() -> None:
    assert named_files("`docs/x.md`, `gone.py`, `tests/gone/`, `metal/NAME.metal`, `states/`, gone.h") == {
        "docs/x.md",
        "gone.py",
        "tests/gone/",
    }
    assert "/tests/test_docs.py" in repository() and "/docs/" in repository()


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_python_in_documents_is_python(path: Path) -> None:
    for kind, block in blocks(path.read_text("utf-8")):
        if kind == "python":
            compile(block, str(path), "exec")


def readme_macs() -> list[tuple[str, str, str]]:
    """README's rows of Macs: memory, how it runs, disk."""
    text = (ROOT / "README.md").read_text("utf-8")
    return re.findall(r"^\| (\d+) GB(?: and more)? \| (.*?) \| (\d+) GB \|", text, re.M)


@pytest.mark.parametrize(("memory", "how", "disk"), readme_macs())
def test_the_readme_says_of_each_mac_what_plan_says(memory: str, how: str, disk: str) -> None:
    options = ["--for", f"{memory}GB", "--bandwidth", "300GB", "--disk", "5GB", "--json"]
    plan = json.loads(CliRunner().invoke(app, ["plan", *options]).stdout)
    ways = {way["name"]: way for way in plan["options"]}
    way = ways[plan["best"]]
    assert plan["best"] == ("4bit" if "`4bit` only" in how else "native")
    assert (ways["native"]["fit"]["how"] == "too large") == ("`4bit` only" in how)
    assert (way["fit"]["how"] == "resident") == how.startswith("all experts")
    assert math.ceil(way["disk"]["kept"] / 1e9) == int(disk)
    share = re.search(r"(\d+)%", how)
    assert round(100 * way["fit"]["slots"] / 256) == (int(share[1]) if share else 100)


def test_the_readme_is_short() -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / "README.md").read_text("utf-8"), flags=re.M | re.S)
    assert len(readme_macs()) == 9 and len(text.split()) <= 640


def test_every_claim_names_a_test_and_the_numerics_it_holds_for() -> None:
    text = (ROOT / "docs" / "proof.md").read_text("utf-8")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:2] == "| "
    ]
    numbers = [row for row in rows if len(row) == 4 and row[0] != "claim"]
    others = [row for row in rows if len(row) == 2 and row[0] != "claim"]
    assert len(numbers) > 10 and len(others) >= 5
    assert {row[1] for row in numbers} == {"`exact`", "`official`", "both", "any"}
    assert not [row[0] for row in numbers + others if "tests/" not in row[-1] and row[-1] != "the same file"]


def test_every_folder_of_tests_is_a_room_or_on_the_map() -> None:
    rooms = {path.parent.name for path in (ROOT / "dsv4_mlx").glob("*/__init__.py")} | {"ops"}
    text = (ROOT / "tests" / "README.md").read_text("utf-8")
    folders = [path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name[0] not in "_."]
    assert len(folders) > 20
    assert not [name for name in folders if name not in rooms and f"`{name}/`" not in text]

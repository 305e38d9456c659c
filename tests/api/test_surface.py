"""What `import dsv4_mlx` promises: names, signatures, docstrings. A change here is a change for users."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import fields, is_dataclass
from typing import Any

import dsv4_mlx

ASKED = "messages * think system schema tools tool_choice max_tokens sampling"
LOADED = "model * context expert_memory ops numerics expert_threads verify_reads wire progress"
SAMPLED = (
    "temperature top_p top_k min_p repetition_penalty presence_penalty frequency_penalty logit_bias seed "
    "stop_ids stop_strings"
)
FUNCTIONS = {"load": LOADED, "convert_checkpoint": "source target recipe * resume progress"}
METHODS = {
    "Model": {
        "ask": ASKED, "stream": ASKED, "tokenize": "text", "detokenize": "tokens", "logits": "tokens",
        "session": "", "close": "", "context": None,
    },
    "ModelSession": {
        "sync": "tokens", "advance": "token", "take_back": "count", "fork": "", "snapshot": "",
        "restore": "snapshot", "close": "", "tokens": None, "logits": None,
    },
}  # fmt: skip
FIELDS = {
    "Answer": "text thinking tool_calls reason tokens",
    "Call": "id name arguments",
    "Piece": "kind text",
    "PrefillProgress": "done total cached scores",
    "SamplingOptions": SAMPLED,
}
ERRORS = {
    "Dsv4Error": Exception, "UsageError": "Dsv4Error", "InputError": "Dsv4Error", "DoesNotFit": "Dsv4Error",
    "MachineError": "Dsv4Error", "DiskFull": "MachineError", "ModelOutputError": "MachineError",
    "Unavailable": "Dsv4Error", "Dsv4Warning": UserWarning,
}  # fmt: skip


def parameters(function: Any) -> str:
    """Names in order, `*` before those that must be named."""
    names, star = [], False
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            names.append("*")
            star = True
        names.append(name)
    return " ".join(names)


def test_names() -> None:
    known = {*FUNCTIONS, *METHODS, *FIELDS, *ERRORS, "SessionSnapshot", "__version__"}
    assert set(dsv4_mlx.__all__) == known
    assert dsv4_mlx.__all__ == sorted(known) == dir(dsv4_mlx)


def test_functions_and_methods() -> None:
    assert {name: parameters(getattr(dsv4_mlx, name)) for name in FUNCTIONS} == FUNCTIONS
    for name, expected in METHODS.items():
        members = vars(getattr(dsv4_mlx, name))
        public = {member: value for member, value in members.items() if not member.startswith("_")}
        found = {k: parameters(v)[4:].strip() if callable(v) else None for k, v in public.items()}
        assert found == expected


def test_fields_and_errors() -> None:
    for name, expected in FIELDS.items():
        kind = getattr(dsv4_mlx, name)
        assert is_dataclass(kind) and " ".join(field.name for field in fields(kind)) == expected
    for name, base in ERRORS.items():
        above = getattr(dsv4_mlx, base) if isinstance(base, str) else base
        assert getattr(dsv4_mlx, name).__bases__ == (above,), name


def test_all_of_it_is_documented() -> None:
    for name in set(dsv4_mlx.__all__) - {"__version__"}:
        value = getattr(dsv4_mlx, name)
        assert inspect.getdoc(value), name
        for member in METHODS.get(name, ()):
            assert inspect.getdoc(getattr(value, member)), f"{name}.{member}"


def test_a_name_that_is_not_there() -> None:
    assert not hasattr(dsv4_mlx, "laod")


def test_every_name_is_found_in_a_fresh_interpreter() -> None:
    """Each by itself, MLX not before the first of them that needs it."""
    code = (
        "import sys, dsv4_mlx\n"
        "assert not {'mlx', 'numpy', 'starlette'} & set(sys.modules)\n"
        "from dsv4_mlx import *\n"
        "print(load.__module__, convert_checkpoint.__module__, InputError.__module__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["dsv4_mlx.api", "dsv4_mlx.hub.models", "dsv4_mlx.errors"]

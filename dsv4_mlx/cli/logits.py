"""dsv4-mlx logits"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from dsv4_mlx.cli.console import progress, tell
from dsv4_mlx.cli.download import model_folder
from dsv4_mlx.cli.option_groups import ENGINE, EngineArguments, grouped
from dsv4_mlx.cli.options import ModelArgument
from dsv4_mlx.errors import InputError, MachineError


@grouped
def logits(
    model: ModelArgument,
    *,
    tokens: Annotated[
        Path, typer.Option("--tokens", metavar="FILE.json", help="An array of arrays of token ids.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.npz", help="Where to write the logits.")],
    chunk: Annotated[
        int | None, typer.Option("--chunk", metavar="N", min=1, help="Cut the prefill at N, 2N, ... instead.")
    ] = None,
    decode: Annotated[
        int, typer.Option("--decode", metavar="N", min=0, help="Feed the last N tokens one by one.")
    ] = 0,
    engine: Annotated[EngineArguments, ENGINE],
) -> None:
    """Write the float32 logits after every token of every prompt: arrays `0`, `1`, ... [tokens, vocabulary].

    Example: dsv4-mlx logits demo --tokens prompts.json --out logits.npz --numerics exact --chunk 128
    """
    from dsv4_mlx.engine.engine import Engine, score

    prompts = read_prompts(tokens)
    if out.parent != Path() and not out.parent.is_dir():
        raise InputError(f"there is no folder {str(out.parent)!r} to write to", where=out)
    if out.is_dir():
        raise InputError(f"{str(out)!r} is a folder", next="give the name of a file to write")
    if out.exists() and not out.is_file():
        raise InputError(f"{str(out)!r} is no ordinary file", next="give the name of a file to write")
    if out.exists() and out.samefile(tokens):
        raise InputError("--out is the file of the tokens", where=out, next="give another name")
    folder = model_folder(model)
    options = engine.with_kernels(folder)
    with progress("loading") as loading:
        opened = Engine.open(folder, options, loading)
    tell(opened.expert_memory)
    arrays = {}
    before, total = 0, sum(map(len, prompts))
    with progress("reading prompts", "tokens") as show:

        def reached(done: int, _: int) -> None:
            show(before + done, total)

        for i, prompt in enumerate(prompts):
            arrays[str(i)] = score(opened, prompt, chunk=chunk, decode=decode, progress=reached)
            before += len(prompt)
    write(out, arrays)
    print(f"{len(prompts)} prompts, {sum(map(len, prompts))} tokens -> {out}", file=sys.stderr)


def write(out: Path, arrays: dict[str, Any]) -> None:
    """Write an npz file under a temporary name and rename it. Raises MachineError."""
    import numpy as np

    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=out.parent, suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            np.savez(file, **arrays)
        temporary.chmod(0o644)
        temporary.replace(out)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise MachineError(f"the logits can't be written: {error.strerror}", where=out) from None


def read_prompts(path: Path) -> list[list[int]]:
    """A JSON array of arrays of ints. Raises InputError."""
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the tokens can't be read: {error.strerror}", where=path) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"the file is not JSON: {error}", where=path) from None
    expected = "expected one array of arrays of token ids, such as [[0, 17, 4], [0, 9]]"
    if not isinstance(raw, list) or not all(isinstance(prompt, list) for prompt in raw):
        raise InputError(f"the file holds something else; {expected}", where=path)
    if not raw:
        raise InputError(f"the file holds no prompts; {expected}", where=path)
    for i, prompt in enumerate(raw):
        if not prompt:
            raise InputError(
                f"prompt {i} has no tokens", where=path, next="give each prompt at least one token"
            )
        for token in prompt:
            if isinstance(token, bool) or not isinstance(token, int):
                raise InputError(f"prompt {i} holds {token!r}, expected whole numbers", where=path)
    return raw

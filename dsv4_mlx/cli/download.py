"""dsv4-mlx download"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from dsv4_mlx.cli.console import progress, size, tell

RevisionOption = Annotated[
    str | None, typer.Option("--revision", metavar="NAME", help="A branch, tag or commit. Default: main.")
]


def download(
    repository: Annotated[str, typer.Argument(help="On the Hub, such as deepseek-ai/DeepSeek-V4-Flash.")],
    target: Annotated[Path, typer.Argument(help="The folder to fill. What is there and right is kept.")],
    revision: RevisionOption = None,
) -> None:
    """Download the official checkpoint: resumed where it stopped, every file checked against its digest.

    The folder can be used as MODEL as it is, or converted. Mirror and token are those of huggingface_hub.

    Example: dsv4-mlx download deepseek-ai/DeepSeek-V4-Flash ~/models/flash-official
    """
    from dsv4_mlx.hub import Patience
    from dsv4_mlx.hub import download as run
    from dsv4_mlx.terminal.awake import Awake

    with Awake(), stages("downloading") as show:
        source = run(repository, target, revision=revision, patience=Patience(tell=tell), progress=show)
    total = sum(header.size for header in source.shards.values())
    print(f"{len(source.shards)} files with {size(total)} of weights are in {target}")


@contextmanager
def stages(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """One bar for work in stages: bytes that came and bytes that were written count alike."""
    reached: dict[str, tuple[int, int]] = {}
    with progress(title) as show:

        def advance(stage: str, done: int, total: int) -> None:
            if stage == "looking":  # headers; a matter of seconds
                return
            reached[stage] = done, total
            show(sum(d for d, _ in reached.values()), sum(t for _, t in reached.values()))

        yield advance

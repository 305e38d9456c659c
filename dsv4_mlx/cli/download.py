"""dsv4-mlx download"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsv4_mlx.cli.console import Progress, tell
from dsv4_mlx.cli.disk_work import ExcludeOption, filling
from dsv4_mlx.machine.units import size

if TYPE_CHECKING:
    from dsv4_mlx.hub.download import DownloadStep

RevisionOption = Annotated[
    str | None, typer.Option("--revision", metavar="NAME", help="A branch, tag or commit. Default: main.")
]


def download(
    repository: Annotated[str, typer.Argument(help="On the Hub, such as deepseek-ai/DeepSeek-V4-Flash.")],
    target: Annotated[Path, typer.Argument(help="The folder to fill. What is there and right is kept.")],
    revision: RevisionOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read again what is there, and fetch what is damaged.")
    ] = False,
    exclude: ExcludeOption = None,
) -> None:
    """Download the official checkpoint: resumed where it stopped, every file checked against its digest.

    The folder can be used as MODEL as it is, or converted. Mirror and token are those of huggingface_hub.

    Example: dsv4-mlx download deepseek-ai/DeepSeek-V4-Flash ~/models/flash-official
    """
    print(fill(repository, target, revision, exclude, verify=verify))


def fill(
    repository: str,
    target: Path,
    revision: str | None = None,
    exclude: bool | None = None,
    *,
    verify: bool = False,
) -> str:
    """Download into `target` and show how far it is; what is there then, in a sentence. Raises Dsv4Error."""
    from dsv4_mlx.hub.download import download as run
    from dsv4_mlx.hub.remote import Retry

    retry = Retry(tell=tell)
    with filling("downloading", [target], exclude) as show:
        source = run(repository, target, revision=revision, retry=retry, progress=stages(show), verify=verify)
    total = sum(header.size for header in source.shards.values())
    return f"{len(source.shards)} files with {size(total)} of weights are in {target}"


def stages(show: Progress) -> Callable[[DownloadStep], None]:
    """One display for work in stages: bytes that came and bytes that were written count alike."""
    reached: dict[str, DownloadStep] = {}

    def advance(step: DownloadStep) -> None:
        if step.stage == "looking":
            show(0, 0, f"looking at shard {step.done} of {step.total}")
            return
        if step.stage == "checking":
            show(step.done, step.total, "checking what is converted")
            return
        reached[step.stage] = step
        words = [f"{stage} {_number(s.shard)}" for stage, s in reached.items() if s.done < s.total]
        if "converting" in reached:
            words.append(f"writing {reached['converting'].file.removesuffix('.safetensors')}")
        show(sum(s.done for s in reached.values()), sum(s.total for s in reached.values()), ", ".join(words))

    return advance


def _number(shard: str) -> str:
    """ "3 of 46" from the name of a shard; any other name as it is."""
    found = re.search(r"-0*(\d+)-of-0*(\d+)\.", shard)
    return f"{found[1]} of {found[2]}" if found else shard

"""dsv4-mlx download"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsv4_mlx.cli.console import Progress, tell
from dsv4_mlx.cli.disk_work import ExcludeOption, existing, filling
from dsv4_mlx.hub.models import model_folder as found_folder
from dsv4_mlx.hub.models import not_here, on_the_hub, short_name
from dsv4_mlx.machine.disks import free_bytes, purgeable
from dsv4_mlx.machine.support import at_home
from dsv4_mlx.machine.units import duration, size, speed

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


def model_folder(reference: str) -> Path:
    """As hub.models.model_folder; the download of what is not on this machine is offered, on a terminal."""
    return _offered(reference) if on_the_hub(reference) else found_folder(reference)


def _offered(repository: str) -> Path:
    """The model, downloaded now if a user at a terminal wants that. Raises InputError with what to type."""
    from huggingface_hub import constants

    refusal = not_here(repository, repository)
    if constants.HF_HUB_OFFLINE or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise refusal
    from dsv4_mlx.hub.rate import measure
    from dsv4_mlx.hub.remote import Retry, look

    tell(f"{repository} is not on this machine; asking the Hub")
    remote = look(repository, retry=Retry(tell=tell))
    target = at_home(f"~/models/{short_name(repository)}-official")
    total, free = sum(file.bytes for file in remote.files.values()), free_bytes(existing(target))
    come = measure(remote)
    tell(
        f"it has {size(total)}; {size(free)} are free in {existing(target)}{purgeable()}; "
        f"at {speed(come)}, measured now, it takes {duration(total / come)}"
    )
    if total > free or not typer.confirm(f"Download it to {target}?", default=False, err=True):
        raise refusal
    tell(fill(repository, target))
    return target


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

"""Options that come in groups: those of an engine and of sampling, spelt once for all commands.

A command asks for a group by one parameter, `engine: Annotated[EngineArguments, ENGINE]`, and is decorated
with `grouped`. The defaults are those of EngineOptions and SamplingOptions.
"""

from __future__ import annotations

import functools
import inspect
import secrets
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from dsv4_mlx.cli.console import progress
from dsv4_mlx.engine.engine_options import EngineOptions, SamplingOptions
from dsv4_mlx.errors import UsageError
from dsv4_mlx.machine.units import parse_tokens

if TYPE_CHECKING:
    from dsv4_mlx.ops.selftest.choose import Choice


def tokens(text: str) -> int:
    """A number of tokens as people write it. Raises typer.BadParameter."""
    found = parse_tokens(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no number of tokens: expected such as 4096, 128K or 1M")
    return found


def at_least_one(text: str) -> int:
    """`tokens`, and not none of them."""
    found = tokens(text)
    if found < 1:
        raise typer.BadParameter(f"{found} is not at least 1")
    return found


OpsMode = Literal["auto", "reference"]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", metavar="N", parser=at_least_one, help="Stop after N tokens. Default: the context."
    ),
]
ContextOption = Annotated[
    int | None,
    typer.Option(
        "--context",
        metavar="N",
        parser=tokens,
        help="Tokens of context, such as 32768 or 32K. Default: what fits, at most 131072.",
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", metavar="S", help="The same seed gives the same answer. Default: a new one."),
]


@dataclass(frozen=True)
class OptionGroup:
    """Options of a command line, by the field they fill; `make` takes their values."""

    filled: type[Any]  # a dataclass
    make: Callable[..., Any]
    options: dict[str, Any]

    def only(self, *names: str) -> OptionGroup:
        """These options alone, in this order."""
        return OptionGroup(self.filled, self.make, {name: self.options[name] for name in names})

    def but(self, *names: str) -> OptionGroup:
        """All options but these."""
        return self.only(*(name for name in self.options if name not in names))

    def parameters(self) -> list[inspect.Parameter]:
        """The options as parameters of a command, with the dataclass's defaults."""
        defaults = {field.name: field.default for field in fields(self.filled)}
        return [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_as_option(OWN[name] if name in OWN else defaults[name]),
                annotation=option,
            )
            for name, option in self.options.items()
        ]

    def value(self, given: dict[str, Any]) -> Any:
        """What the command is given; takes the options out of `given`."""
        return self.make(**{name: given.pop(name) for name in self.options})


def _option(kind: Any, flag: str, metavar: str | None, help: str, **more: Any) -> Any:
    """The annotation of an option of a group."""
    return Annotated[kind, typer.Option(flag, metavar=metavar, help=help, **more)]


def _as_option(default: Any) -> Any:
    """A field's default as an option's: an option that can be repeated has none."""
    return None if default is MISSING or default in ((), frozenset()) else default


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command with its groups' options as parameters of their own, as typer reads them."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, OptionGroup] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        found = [part for part in get_args(parameter.annotation) if isinstance(part, OptionGroup)]
        if found:
            groups[name] = found[0]
        parameters += found[0].parameters() if found else [parameter]

    @functools.wraps(command)
    def called(**given: Any) -> None:
        command(**{name: group.value(given) for name, group in groups.items()}, **given)

    keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    called.__dict__["__signature__"] = signature.replace(parameters=keyword)
    return called


def parse_biases(pairs: list[str] | None) -> dict[int, float]:
    """["17=-2.5"] -> {17: -2.5}. Raises UsageError."""
    found: dict[int, float] = {}
    for pair in pairs or []:
        token, equals, value = pair.partition("=")
        try:
            if not equals or not pair.isascii():  # int() would take other scripts' digits
                raise ValueError
            found[int(token)] = float(value)
        except ValueError:
            raise UsageError(
                f"--logit-bias is {pair!r}, expected ID=VALUE", next="for example --logit-bias 17=-2.5"
            ) from None
    return found


def _sampling(
    seed: int | None = SamplingOptions.seed,
    logit_bias: list[str] | None = None,
    stop_ids: list[int] | None = None,
    stop_strings: list[str] | None = None,
    **given: Any,
) -> SamplingOptions:
    return SamplingOptions(
        seed=secrets.randbits(32) if seed is None else seed,
        logit_bias=parse_biases(logit_bias),
        stop_ids=frozenset(stop_ids or ()),
        stop_strings=tuple(stop_strings or ()),
        **given,
    )


class EngineArguments:
    """The engine's options as given. The ops are chosen later: trying the kernels takes seconds."""

    def __init__(self, ops: OpsMode, **given: Any) -> None:
        self.ops = ops
        self._given = given

    def options(self, **more: Any) -> EngineOptions:
        """With `more` fields, and the reference unless `ops` is among them."""
        return EngineOptions(**self._given, **more)

    def with_kernels(self, *, plain: bool = False, **more: Any) -> EngineOptions:
        """With kernels that are trusted on this machine. The first time they are checked: that takes seconds.

        What was replaced by its reference is said on stderr. `plain` as in `progress`.
        """
        return self.options(ops=trusted(self.ops, plain=plain).ops, **more)


def trusted(mode: OpsMode = "auto", *, plain: bool = False) -> Choice:
    """The ops of `--ops`, as EngineArguments.with_kernels has them."""
    from dsv4_mlx.ops.selftest.choose import choose

    with progress("checking Metal kernels, once", "kernels", plain=plain) as show:
        choice = choose(mode, progress=show)
    if choice.message is not None:
        print(f"warning: {choice.message}", file=sys.stderr)
    return choice


# Defaults of the command line's own: a seed that nobody gave is drawn, and kernels are tried.
OWN = {"seed": None, "ops": "auto"}

ENGINE = OptionGroup(
    EngineOptions,
    EngineArguments,
    {
        "context": ContextOption,
        "numerics": _option(
            Literal["official", "exact"], "--numerics", None,
            "official: simulate the cache rounding the model was trained with; exact: float32.",
        ),
        "ops": _option(
            OpsMode, "--ops", None,
            "auto: Metal kernels that proved themselves on this Mac; reference: none of them.",
        ),
        "expert_memory": _option(
            str, "--expert-memory", "auto|SIZE|N%|Nx",
            "Memory for routed experts: 24GB, 25%, or 6x for 6 slots per layer. The rest is read from disk "
            "when needed; answers don't change.",
        ),
        "expert_threads": _option(
            int | None, "--expert-threads", "N", "Threads that read experts. Default: measured.",
            min=1, max=64,
        ),
        "verify_reads": _option(
            bool, "--verify-reads", None, "Check the SHA-256 of every expert that is read."
        ),
        "wire": _option(
            Literal["auto", "off"], "--wire", None,
            "auto: the system may not page the model out, unless that ended badly last time; off: it may.",
        ),
    },
)  # fmt: skip
SAMPLING = OptionGroup(
    SamplingOptions,
    _sampling,
    {
        "temperature": _option(float, "--temperature", "T", "0 takes the likeliest token."),
        "top_p": _option(float, "--top-p", "P", "Draw from the likeliest tokens whose share reaches P."),
        "top_k": _option(int, "--top-k", "K", "Draw from the K likeliest tokens. 0: all."),
        "min_p": _option(
            float, "--min-p", "P", "Leave out tokens below P times the likeliest's probability."
        ),
        "repetition_penalty": _option(
            float, "--repetition-penalty", "R", "Above 1: tokens of prompt and answer become less likely."
        ),
        "presence_penalty": _option(
            float, "--presence-penalty", "X", "Taken off the logit of a token once answered."
        ),
        "frequency_penalty": _option(
            float, "--frequency-penalty", "X", "Taken off a logit each time the answer has the token."
        ),
        "logit_bias": _option(
            list[str] | None, "--logit-bias", "ID=VALUE", "Add VALUE to this token's logit. Repeatable."
        ),
        "stop_strings": _option(list[str] | None, "--stop", "TEXT", "End before this text. Repeatable."),
        "stop_ids": _option(list[int] | None, "--stop-id", "ID", "End at this token. Repeatable."),
        "seed": SeedOption,
    },
)

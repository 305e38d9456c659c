"""Sampling options on the command line: every knob of SamplingOptions, spelt once for all commands."""

from __future__ import annotations

from typing import Annotated

import typer

from dsv4_mlx.errors import UsageError

TemperatureOption = Annotated[
    float, typer.Option("--temperature", metavar="T", help="0 takes the likeliest token.")
]
TopPOption = Annotated[
    float, typer.Option("--top-p", metavar="P", help="Draw from the likeliest tokens whose share reaches P.")
]
TopKOption = Annotated[
    int, typer.Option("--top-k", metavar="K", help="Draw from the K likeliest tokens. 0: all.")
]
MinPOption = Annotated[
    float,
    typer.Option("--min-p", metavar="P", help="Leave out tokens below P times the likeliest's probability."),
]
RepetitionOption = Annotated[
    float,
    typer.Option(
        "--repetition-penalty", metavar="R", help="Above 1: tokens of prompt and answer become less likely."
    ),
]
PresenceOption = Annotated[
    float,
    typer.Option("--presence-penalty", metavar="X", help="Taken off the logit of a token once answered."),
]
FrequencyOption = Annotated[
    float,
    typer.Option(
        "--frequency-penalty", metavar="X", help="Taken off a logit each time the answer has the token."
    ),
]
LogitBiasOption = Annotated[
    list[str] | None,
    typer.Option("--logit-bias", metavar="ID=VALUE", help="Add VALUE to this token's logit. Repeatable."),
]
StopOption = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="End before this text. Repeatable.")
]
StopIdOption = Annotated[
    list[int] | None, typer.Option("--stop-id", metavar="ID", help="End at this token. Repeatable.")
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", metavar="S", help="The same seed gives the same answer. Default: a new one."),
]


def logit_bias(pairs: list[str] | None) -> dict[int, float]:
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

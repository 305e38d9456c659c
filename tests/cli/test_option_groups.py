"""Defaults of options: written once, in the dataclasses, and the same on every way in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from generated_docs import commands

from dsv4_mlx.cli.option_groups import ENGINE, SAMPLING, EngineArguments, OptionGroup, grouped
from dsv4_mlx.engine.engine_options import EngineOptions, SamplingOptions
from dsv4_mlx.ops.table import REFERENCE
from dsv4_mlx.scheduler.admission import SchedulerOptions
from dsv4_mlx.server.options import ServerOptions
from dsv4_mlx.server.protocols.options import sampling

EMPTY = {"logit_bias": None, "stop_ids": None, "stop_strings": None}  # as typer gives them


def default_of(command: str, option: str) -> Any:
    found = [p.default for p in commands()[command].params if option in p.opts]
    assert len(found) == 1, f"{command} {option}"
    return found[0]


@pytest.mark.parametrize("command", ("chat", "generate", "serve", "bench", "logits", "check", "eval"))
def test_every_command_has_the_engines_defaults(command: str) -> None:
    known = {option for p in commands()[command].params for option in p.opts}
    named = {name: f"--{name.replace('_', '-')}" for name in ENGINE.options}
    shared = {name for name, option in named.items() if option in known} - {"ops"}
    assert {"expert_memory", "expert_threads", "wire"} <= shared
    if command == "bench":
        shared.remove("context")  # where it measures
    for name in shared:
        assert default_of(command, named[name]) == getattr(EngineOptions(), name), name
    assert default_of(command, "--ops") == "auto"


def test_sampling_has_the_same_defaults_on_the_command_line_and_in_a_request() -> None:
    usual = SamplingOptions()
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty"):
        assert default_of("generate", f"--{name.replace('_', '-')}") == getattr(usual, name)
    request = sampling({"seed": 0}, thinking=True, mode="client", vocabulary=640)
    assert request == usual == SAMPLING.value(dict.fromkeys(SAMPLING.options) | vars(usual) | EMPTY)


def test_serve_has_the_servers_defaults() -> None:
    server, scheduler = ServerOptions(), SchedulerOptions()
    for option in ("host", "port", "think", "sampling", "allow_unauthenticated", "strict_model"):
        assert default_of("serve", f"--{option.replace('_', '-')}") == getattr(server, option)
    assert (default_of("serve", "--max-active"), default_of("serve", "--max-queue")) == (
        scheduler.active,
        scheduler.waiting,
    )
    assert {default_of(command, "--think") for command in ("chat", "generate")} == {server.think}


@dataclass(frozen=True)
class Louder:
    temperature: float = 7.5
    top_k: int = 3


LOUDER = OptionGroup(Louder, Louder, SAMPLING.options).only("top_k", "temperature")


def test_a_group_fills_what_it_is_of() -> None:
    """Its defaults are the dataclass's, whatever they are; what is given replaces them."""
    seen: list[Louder] = []
    app = typer.Typer()

    @app.command()
    @grouped
    def ask(name: str, *, louder: Annotated[Louder, LOUDER], end: bool = False) -> None:
        assert (name, end) == ("x", True)
        seen.append(louder)

    command = typer.main.get_command(app)
    names = [p.name for p in command.params]
    assert [name for name in names if name in ("name", "top_k", "temperature", "end")] == names[:4]
    for words in (["x", "--end"], ["x", "--end", "--top-k", "4"]):
        command.main(words, standalone_mode=False)
    assert seen == [Louder(), Louder(top_k=4)]


def test_the_ops_are_chosen_late_and_the_rest_is_as_given() -> None:
    given = EngineArguments(ops="reference", numerics="exact", expert_memory="6x")
    assert given.options(context=9) == EngineOptions(9, "exact", expert_memory="6x")
    assert given.with_kernels(Path("none"), plain=True).ops is REFERENCE

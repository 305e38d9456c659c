"""DeepSeek V4 Flash on Apple silicon.

    model = dsv4_mlx.load("demo")
    print(model.ask("What is CSA?", think="off"))

Every name below is imported when it is first asked for: importing this package is quick, and imports no MLX.
"""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING

from dsv4_mlx.machine import mlx_switches as _mlx_switches  # noqa: F401 - before MLX computes anything

if TYPE_CHECKING:
    from dsv4_mlx.api import Model, ModelSession, load
    from dsv4_mlx.engine.decode import PrefillProgress
    from dsv4_mlx.engine.engine_options import SamplingOptions
    from dsv4_mlx.engine.session import SessionSnapshot
    from dsv4_mlx.errors import (
        DiskFull,
        DoesNotFit,
        Dsv4Error,
        Dsv4Warning,
        InputError,
        MachineError,
        ModelOutputError,
        UsageError,
    )
    from dsv4_mlx.hub.models import convert_checkpoint
    from dsv4_mlx.scheduler.request import Unavailable
    from dsv4_mlx.scheduler.turn_cache import Call
    from dsv4_mlx.server.protocols.library import Answer
    from dsv4_mlx.tokenizer.output_parser import Piece

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Call",
    "DiskFull",
    "DoesNotFit",
    "Dsv4Error",
    "Dsv4Warning",
    "InputError",
    "MachineError",
    "Model",
    "ModelOutputError",
    "ModelSession",
    "Piece",
    "PrefillProgress",
    "SamplingOptions",
    "SessionSnapshot",
    "Unavailable",
    "UsageError",
    "__version__",
    "convert_checkpoint",
    "load",
]

_HOMES = {
    "Answer": "server.protocols.library",
    "Call": "scheduler.turn_cache",
    "Model": "api",
    "ModelSession": "api",
    "Piece": "tokenizer.output_parser",
    "PrefillProgress": "engine.decode",
    "SamplingOptions": "engine.engine_options",
    "SessionSnapshot": "engine.session",
    "Unavailable": "scheduler.request",
    "convert_checkpoint": "hub.models",
    "load": "api",
}  # of the other names: errors


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(_import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


# A wheel carries convert/ and metal/ inside this package; a checkout keeps them beside it, and links to them.
if not (_Path(__file__).parent / "convert").is_dir():
    raise ImportError(
        f"{_Path(__file__).parent / 'convert'} is not a folder: this copy of dsv4-mlx has lost its symbolic "
        "links, which some programs that unpack a zip do not make. Get it with git clone, or use unzip"
    )

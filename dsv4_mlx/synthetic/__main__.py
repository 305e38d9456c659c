"""`python -m dsv4_mlx.synthetic OUT`: write a random checkpoint in the official layout."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from dsv4_mlx.checkpoint.inventory import inventory
from dsv4_mlx.config import ModelConfig, parse_config
from dsv4_mlx.convert.recipe import find_recipe
from dsv4_mlx.errors import EXIT_INTERRUPT, Dsv4Error, InputError, MachineError, Progress, UsageError
from dsv4_mlx.synthetic.configs import cut, release_config, small_config
from dsv4_mlx.synthetic.holes import write_converted, write_holes
from dsv4_mlx.synthetic.write import make_empty, write_checkpoint

EXAMPLES = """examples:
  python -m dsv4_mlx.synthetic /tmp/small
      seven small layers (all kinds of attention, hash and learned routing, MTP), 5 MB
  python -m dsv4_mlx.synthetic /tmp/flash --like flash --seed 1
      the 43 layers of V4-Flash at small widths, 35 MB
  python -m dsv4_mlx.synthetic /tmp/layer --like flash --true-size --layers 1
      one layer of V4-Flash at its true widths with embedding, head and MTP block, 9 GB
  python -m dsv4_mlx.synthetic /tmp/whole --like flash --true-size --holes
      all of V4-Flash, 160 GB of which 0.3 GB are on the disk: nearly all weights are holes of sparse files
  python -m dsv4_mlx.synthetic /tmp/native --like flash --true-size --holes --recipe native
      the same, converted
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code. Errors go to stderr."""
    parser = _Parser(
        prog="python -m dsv4_mlx.synthetic",
        description="Write a random checkpoint in the official DeepSeek V4 layout.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=_path, metavar="OUT", help="a new or empty folder")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument(
        "--config", type=_path, metavar="FILE", help="an official config.json to follow exactly"
    )
    shape.add_argument(
        "--like", choices=("flash", "base", "pro", "0731"), help="the layers and keys of this release"
    )
    parser.add_argument("--layers", type=int, metavar="N", help="keep only the first N layers")
    parser.add_argument("--experts", type=int, metavar="N", help="routed experts per layer")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0; same seed, same bytes")
    parser.add_argument(
        "--true-size", action="store_true", help="the true widths of --like instead of small ones"
    )
    parser.add_argument(
        "--holes", action="store_true", help="leave large weights out: holes of sparse files, which are zero"
    )
    parser.add_argument(
        "--recipe", metavar="NAME", help="with --holes: what converting with this recipe would write"
    )
    try:
        _run(parser.parse_args(arguments))
        sys.stdout.flush()
    except Dsv4Error as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; the folder is incomplete", file=sys.stderr)
        return EXIT_INTERRUPT
    except OSError as error:  # standard output is full or closed
        print(f"error: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor at exit
        return MachineError.exit_code
    return 0


def _path(given: str) -> Path:
    return Path(os.path.expanduser(given))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, next=f"{self.prog} --help")


def _run(options: argparse.Namespace) -> None:
    if options.true_size and not options.like:
        raise UsageError("--true-size needs --like", next="add --like flash, base, pro or 0731")
    if options.recipe and not options.holes:
        raise UsageError("--recipe needs --holes", next="write a checkpoint, then: dsv4-mlx convert")
    config = cut(_config(options), options.layers, options.experts)
    total = sum(t.bytes for t in inventory(parse_config(json.dumps(config), "the given config")).tensors())
    show = sys.stderr.isatty()

    def progress(done: int, _: int) -> None:
        if show:
            print(f"\r{done / 1e6:,.0f} of {total / 1e6:,.0f} MB", end="", file=sys.stderr, flush=True)

    started = time.monotonic()
    model = _write(options, config, progress)
    if show:
        print(file=sys.stderr)
    print(
        f"{options.out}: {model.layers} layers, {model.experts} experts, {total / 1e6:,.1f} MB, "
        f"seed {options.seed}, {time.monotonic() - started:.1f} s"
    )


def _write(options: argparse.Namespace, config: dict[str, Any], progress: Progress) -> ModelConfig:
    if not options.holes:
        return write_checkpoint(options.out, config, options.seed, progress=progress)
    if options.recipe is None:
        return write_holes(options.out, config, options.seed, progress=progress)
    find_recipe(options.recipe)
    make_empty(options.out)
    with TemporaryDirectory(dir=options.out.parent) as place:
        official = Path(place) / "official"
        model = write_holes(official, config, options.seed, progress=progress)
        write_converted(official, options.out, options.recipe)
    return model


def _config(options: argparse.Namespace) -> dict[str, Any]:
    if options.like:
        return release_config(options.like, true_size=options.true_size)
    if options.config is None:
        return small_config()
    try:
        text = options.config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the config can't be read: {error}", where=options.config) from None
    parse_config(text, options.config)
    config: dict[str, Any] = json.loads(text)
    return config


if __name__ == "__main__":
    sys.exit(main())

"""The command line: options in, Engine and convert called, people's output out. No logic of its own."""

from dsv4_mlx.cli.main import main

__all__ = ["main"]

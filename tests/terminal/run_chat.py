"""Run the chat with a scripted engine: run_chat.py SCENE FOLDER [--plain] [-p TEXT] [--resume NAME]."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from dsv4_mlx.errors import Dsv4Error
from dsv4_mlx.terminal.chat import ChatOptions
from dsv4_mlx.terminal.terminal import talk
from terminal.scenes import SCENES


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("scene")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("-p", dest="prompt")
    parser.add_argument("--resume")
    given = parser.parse_args()
    options = ChatOptions("scripted", seed=1, resume=given.resume)
    try:
        return talk(
            SCENES[given.scene](), given.folder, options, dict(os.environ), question=given.prompt,
            plain=given.plain,
        )  # fmt: skip
    except Dsv4Error as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

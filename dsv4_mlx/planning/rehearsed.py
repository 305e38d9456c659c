"""The process that `rehearsal` starts: converts for some seconds and prints its pace as a line of JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from dsv4_mlx.convert import rehearse
from dsv4_mlx.errors import Dsv4Error


def main(official: str, place: str, seconds: str) -> None:
    try:
        print(json.dumps(asdict(rehearse(Path(official), Path(place), float(seconds)))))
    except Dsv4Error as error:
        sys.exit(error.message)
    except OSError as error:
        sys.exit(f"{error.strerror or error} ({error.filename or place})")

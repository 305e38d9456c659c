"""A download of one file, to be killed.

python range_helpers.py ENDPOINT FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from hub.fake_hub import REPOSITORY

from dsv4_mlx.hub.fetch import Fetcher
from dsv4_mlx.hub.remote import Retry, look

remote = look(REPOSITORY, endpoint=sys.argv[1], retry=Retry(first=0.05))
Fetcher(remote, Path(sys.argv[2]), lambda count: None).fetch("large.safetensors")

"""The demo model's training code is in bench/, which is part of the checkout and not of the package."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
if not (ROOT / "bench" / "demo_model").is_dir():
    collect_ignore_glob = ["test_*.py"]  # an installed package
elif str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

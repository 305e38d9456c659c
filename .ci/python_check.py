"""Can this Python run the project? Written so that an old Python can read it, too."""

import os
import platform
import sys

if sys.version_info < (3, 11):
    sys.exit(
        "error: %s is Python %s, dsv4-mlx needs 3.11 or newer\n"
        "  next: install one (python.org, Homebrew, apt) and name it: make demo PYTHON=python3.12"
        % (sys.executable, platform.python_version())
    )
if sys.platform == "darwin" and platform.machine() != "arm64":
    sys.exit(
        "error: %s is for Intel processors (an Intel Mac, or an Intel Python under Rosetta)\n"
        "  next: on Apple silicon install an arm64 Python and name it: make demo PYTHON=/path/to/python3.12"
        % sys.executable
    )
try:
    import ensurepip  # noqa: F401
    import venv  # noqa: F401
except ImportError:
    sys.exit(
        "error: %s has no venv module\n  next: install it, for example: apt-get install python3-venv"
        % sys.executable
    )
if not os.path.isdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "dsv4_mlx", "convert")):
    sys.exit(
        "error: dsv4_mlx/convert is not a folder: this copy has lost its symbolic links\n"
        "  next: get it with git clone, or unpack the zip with a program that makes links, such as unzip"
    )

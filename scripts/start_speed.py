"""Commands that do nothing but start: what to time."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "import torch": ("-c", "import torch"),
    "import tta": ("-c", "import tta"),
    "import tta.methods": ("-c", "import tta.methods"),
    "tta --help": ("-m", "tta", "--help"),
    "tta --cfg job": ("-m", "tta", "--cfg", "job"),
    "tta-compare --help": ("-c", "from tta.compare.cli import main; main()", "--help"),
    "tta-data list": ("-c", "from tta.data.cli import main; main()", "list"),
}


def starts() -> dict[str, Callable[[], object]]:
    """Make a function for each command, which starts it and waits for its end."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = functools.partial(subprocess.run, check=True, capture_output=True, env=environment)
    return {name: functools.partial(run, [sys.executable, *words]) for name, words in COMMANDS.items()}

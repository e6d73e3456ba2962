"""The runs of a sweep: as commands of their own, and as one sweep."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def ways_to_run(words: Sequence[str], device: str, threads: int) -> tuple[int, dict[str, Callable[[], None]]]:
    """Give the number of runs that these words of a sweep come to, and functions that run all of them.

    Args:
        words: as after ``tta -m``, simple choices only: ``method=tent,adadem seed=0,1``.
        device: as in ``device=``.
        threads: of the CPU, for each process.
    """
    values = [[f"{key}={value}" for value in choice.split(",")] for key, _, choice in (w.partition("=") for w in words)]
    jobs = list(itertools.product(*values))

    def tta(*arguments: str, folder: str) -> None:
        command = [sys.executable, "-m", "tta", *arguments, f"device={device}", f"runs_dir={folder}"]
        path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
        done = subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")

    def commands() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for job in jobs:
                tta(*job, folder=folder)

    def sweep() -> None:
        with tempfile.TemporaryDirectory() as folder:
            tta("-m", *words, folder=folder)

    return len(jobs), {
        "commands, one after another": commands,
        "a sweep: one process, backbone and stream": sweep,
    }

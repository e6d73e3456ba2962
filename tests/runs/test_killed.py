"""A sweep that is killed again and again ends with the files of one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.sweep_files import left, make_files, words

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
METHODS, SEEDS, ROWS = ("deyo", "rotta"), (0, 1), 12  # rows of a run
KILLS = 3


def arguments(files: Path, runs_dir: Path) -> list[str]:
    """Words of the sweep, as after ``tta``."""
    own = [f"method={','.join(METHODS)}", f"seed={','.join(map(str, SEEDS))}", "optimizer.lr=0.01"]
    return ["-m", *own, *words(files), "scenario=continual", "checkpoint.every=2", f"runs_dir={runs_dir}"]


def start(files: Path, *words: str) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TTA_CACHE": str(files / "cache"), "PYTHONPATH": path}
    with (files / "said").open("w") as file:
        command = [sys.executable, "-m", "tta", *words]
        return subprocess.Popen(command, cwd=files, env=environment, stdout=file, stderr=file)


def count_rows(runs_dir: Path) -> int:
    return sum(file.read_bytes().count(b"\n") - 1 for file in runs_dir.glob("*/batches.csv"))


def test_killed_sweep__ends_with_the_same_files(tta_command: Callable[..., None], tmp_path: Path) -> None:
    """The sweep is killed whenever all its runs together have so many rows, and started again."""
    make_files(tmp_path)
    tta_command(*arguments(tmp_path, tmp_path / "undisturbed"))
    runs_dir, total = tmp_path / "killed", len(METHODS) * len(SEEDS) * ROWS
    for target in sorted(random.Random(0).sample(range(4, total), KILLS)):
        process = start(tmp_path, *arguments(tmp_path, runs_dir))
        while process.poll() is None and count_rows(runs_dir) < target:
            time.sleep(0.003)  # a row takes several times as long
        process.kill()
        assert process.wait() == -signal.SIGKILL, (tmp_path / "said").read_text()
    assert start(tmp_path, *arguments(tmp_path, runs_dir)).wait() == 0, (tmp_path / "said").read_text()
    killed, undisturbed = left(runs_dir), left(tmp_path / "undisturbed")
    assert killed == undisturbed
    assert len(killed) == len(METHODS) * len(SEEDS) * 5

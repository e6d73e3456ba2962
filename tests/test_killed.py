"""A sweep that is killed again and again ends with the files of one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from helpers.sweep_files import differences, left, make_files, words

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[1]
METHODS, PACKED_METHODS = ("deyo", "rotta"), ("tent", "adadem")
PACKED = ("replicas=3", "replica_pass=interleaved")
SEEDS, ROWS = (0, 1), 12  # of a run


def arguments(files: Path, runs_dir: Path, methods: Sequence[str], options: Sequence[str]) -> list[str]:
    """Words of the sweep, as after ``tta``."""
    own = [f"method={','.join(methods)}", f"seed={','.join(map(str, SEEDS))}", "optimizer.lr=0.01"]
    return ["-m", *own, *words(files), "scenario=continual", "checkpoint.every=2", f"runs_dir={runs_dir}", *options]


def start(files: Path, *words: str) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TTA_CACHE": str(files / "cache"), "PYTHONPATH": path}
    with (files / "said").open("w") as file:
        command = [sys.executable, "-m", "tta", *words]
        return subprocess.Popen(command, cwd=files, env=environment, stdout=file, stderr=file)


def count_rows(runs_dir: Path) -> int:
    return sum(file.read_bytes().count(b"\n") - 1 for file in runs_dir.glob("*/batches.csv"))


@pytest.mark.parametrize(
    ("methods", "options", "kills"), [(METHODS, (), 3), (PACKED_METHODS, PACKED, 2)], ids=["one by one", "packed"]
)
def test_killed_sweep__ends_with_the_same_files(
    tta_command: Callable[..., None], tmp_path: Path, methods: Sequence[str], options: Sequence[str], kills: int
) -> None:
    """The sweep is killed whenever all its runs together have so many rows, and started again."""
    make_files(tmp_path)
    tta_command(*arguments(tmp_path, tmp_path / "undisturbed", methods, options))
    runs_dir, total = tmp_path / "killed", len(methods) * len(SEEDS) * ROWS
    for target in sorted(random.Random(0).sample(range(4, total), kills)):
        process = start(tmp_path, *arguments(tmp_path, runs_dir, methods, options))
        while process.poll() is None and count_rows(runs_dir) < target:
            time.sleep(0.003)  # a row takes several times as long
        process.kill()
        assert process.wait() == -signal.SIGKILL, (tmp_path / "said").read_text()
    assert start(tmp_path, *arguments(tmp_path, runs_dir, methods, options)).wait() == 0, (
        tmp_path / "said"
    ).read_text()
    killed, undisturbed = left(runs_dir), left(tmp_path / "undisturbed")
    # Which runs share a pass is another matter after a kill, and so is the rounding.
    assert not differences(killed, undisturbed) if options else killed == undisturbed
    assert len(killed) == len(methods) * len(SEEDS) * 5

"""A sweep that is killed at ten moments and started again ends with the files of one that was not.

As a program, runs the sweep in processes that fork from it, so that each starts at once: RUNS_DIR TARGET,... WORDS.
Each process is killed when all runs together have so many rows; the last one is not.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from sweep_files import differences, left, make_files, words

REPOSITORY = Path(__file__).resolve().parents[1]
KILLS = 10
SEEDS, ROWS = (0, 1), 12  # of a run
PACKED = ("replicas=3", "replica_pass=interleaved")

IMPORTED = ("tta.runner", "tta.methods", "tta.streams.cifar", "timm", "torchmetrics.functional.classification")


def sweep(files: Path, runs_dir: Path, targets: list[int], methods: Sequence[str], *options: str) -> str:
    """Run the sweep, killed at these numbers of rows; return what it said at last."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TTA_CACHE": str(files / "cache")}
    sweep = ["-m", f"method={','.join(methods)}", f"seed={','.join(map(str, SEEDS))}", "optimizer.lr=0.01"]
    command = [sys.executable, __file__, str(runs_dir), ",".join(map(str, targets))]
    command += [*sweep, *words(files), "scenario=continual", "checkpoint.every=2", f"runs_dir={runs_dir}", *options]
    done = subprocess.run(command, check=False, cwd=files, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("methods", "options"), [(("deyo", "rotta"), ()), (("tent", "adadem"), PACKED)], ids=["one by one", "packed"]
)
def test_a_sweep_killed_at_ten_moments_ends_with_the_files_of_an_undisturbed_one(
    tmp_path: Path, methods: Sequence[str], options: Sequence[str]
) -> None:
    make_files(tmp_path)
    told = sweep(tmp_path, tmp_path / "undisturbed", [], methods, *options)
    assert "goes on after" not in told
    targets = sorted(random.Random(0).sample(range(1, len(methods) * len(SEEDS) * ROWS), KILLS))
    told = sweep(tmp_path, tmp_path / "killed", targets, methods, *options)
    assert told.count("was killed") == KILLS
    assert told.count("goes on after") >= KILLS // 2  # other kills come before a run's first checkpoint
    killed, undisturbed = left(tmp_path / "killed"), left(tmp_path / "undisturbed")
    # Which runs share a pass is another matter after a kill, and so is the rounding.
    assert not differences(killed, undisturbed) if options else killed == undisturbed
    assert len(left(tmp_path / "killed")) == len(methods) * len(SEEDS) * 5


def _rows(runs_dir: Path) -> int:
    return sum(file.read_bytes().count(b"\n") - 1 for file in runs_dir.glob("*/batches.csv"))


def _main(runs_dir: Path, targets: list[int], arguments: list[str]) -> None:
    from tta import cli

    for name in IMPORTED:
        importlib.import_module(name)  # before the processes fork
    sys.argv = ["tta", *arguments]
    for number, target in enumerate([*targets, sys.maxsize]):
        if (child := os.fork()) == 0:
            cli.main()
            os._exit(0)
        pause = random.Random(number).uniform(0, 0.02)
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if _rows(runs_dir) >= target:
                time.sleep(pause)
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                print(f"{number} was killed at {_rows(runs_dir)} rows", flush=True)
                break
            time.sleep(0.003)  # a row takes several times as long


if __name__ == "__main__":
    _main(Path(sys.argv[1]), [int(word) for word in sys.argv[2].split(",") if word], sys.argv[3:])

"""A sweep that is killed at ten moments and started again ends with the files of one that was not."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers.forks import forked
from helpers.sweep_files import differences, left, make_files, words
from tta import cli

KILLS = 10
SEEDS, ROWS = (0, 1), 12  # of a run
PACKED = ("replicas=3", "replica_pass=interleaved")


def sweep(files: Path, runs_dir: Path, targets: Sequence[int], methods: Sequence[str], *options: str) -> str:
    """Run the sweep, killed whenever all its runs together have so many rows; return what it said."""
    arguments = ["-m", f"method={','.join(methods)}", f"seed={','.join(map(str, SEEDS))}", "optimizer.lr=0.01"]
    arguments += [*words(files), "scenario=continual", "checkpoint.every=2", f"runs_dir={runs_dir}", *options]
    said, cache = files / "said", {"TTA_CACHE": str(files / "cache")}
    for number, target in enumerate([*targets, sys.maxsize]):
        pause = random.Random(number).uniform(0, 0.02)
        with said.open("a") as file:
            process = forked(cli.main, "tta", *arguments, cwd=files, env=cache, stdout=file, stderr=file)
        while process.poll() is None and _rows(runs_dir) < target:
            time.sleep(0.003)  # a row takes several times as long
        if target < sys.maxsize:
            time.sleep(pause)
            process.kill()
        assert process.wait() == (-signal.SIGKILL if target < sys.maxsize else 0), said.read_text()
    return said.read_text()


def _rows(runs_dir: Path) -> int:
    return sum(file.read_bytes().count(b"\n") - 1 for file in runs_dir.glob("*/batches.csv"))


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
    assert told.count("goes on after") >= KILLS // 2  # other kills come before a run's first checkpoint
    killed, undisturbed = left(tmp_path / "killed"), left(tmp_path / "undisturbed")
    # Which runs share a pass is another matter after a kill, and so is the rounding.
    assert not differences(killed, undisturbed) if options else killed == undisturbed
    assert len(left(tmp_path / "killed")) == len(methods) * len(SEEDS) * 5

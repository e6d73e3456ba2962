"""One process at a time works on a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.errors import assert_names, raises_naming
from tta.runs.lock import RunLockedError, is_locked, run_lock

HOLD = """
import sys, time
from pathlib import Path
from tta.runs.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "tent-0123456789"


def test_claim__lasts_until_its_holder_is_killed(run: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_locked(run)
        with pytest.raises(RunLockedError) as error, run_lock(run):
            pass
        assert_names(str(error.value), run.name, holder.pid)
        assert error.value.path == run
        holder.kill()
    assert not is_locked(run)
    with run_lock(run):
        assert is_locked(run)


def test_claim__ends_after_an_error(run: Path) -> None:
    with pytest.raises(KeyError), run_lock(run):
        raise KeyError
    assert not is_locked(run)
    with run_lock(run):
        pass


def test_claim__is_of_one_run(run: Path) -> None:
    other = run.with_name("eta-0123456789")
    with run_lock(run):
        assert not is_locked(other)
        with run_lock(other):
            assert is_locked(run)
            assert is_locked(other)
        assert is_locked(run)
        assert not is_locked(other)


def test_claim__of_an_unknown_owner(run: Path) -> None:
    """It has not yet written who it is, or only half of it."""
    with run_lock(run):
        for note in run.parent.rglob("*.json"):
            note.write_text("{")
        with raises_naming(RunLockedError, run.name), run_lock(run):
            pass


def test_claim__in_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises_naming(OSError, "runs_dir", tmp_path / "file"), run_lock(tmp_path / "file" / "run"):
        pass

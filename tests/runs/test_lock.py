"""One process at a time works on a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.errors import assert_names, raises_naming
from tta.runs.lock import TakenError, claim, is_taken

HOLD = """
import sys, time
from pathlib import Path
from tta.runs.lock import claim
with claim(Path(sys.argv[1])):
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
        assert is_taken(run)
        with pytest.raises(TakenError) as error, claim(run):
            pass
        assert_names(str(error.value), run.name, holder.pid)
        assert error.value.path == run
        holder.kill()
    assert not is_taken(run)
    with claim(run):
        assert is_taken(run)


def test_claim__ends_after_an_error(run: Path) -> None:
    with pytest.raises(KeyError), claim(run):
        raise KeyError
    assert not is_taken(run)
    with claim(run):
        pass


def test_claim__is_of_one_run(run: Path) -> None:
    other = run.with_name("eta-0123456789")
    with claim(run):
        assert not is_taken(other)
        with claim(other):
            assert is_taken(run)
            assert is_taken(other)
        assert is_taken(run)
        assert not is_taken(other)


def test_claim__of_an_unknown_owner(run: Path) -> None:
    """It has not yet written who it is, or only half of it."""
    with claim(run):
        for note in run.parent.rglob("*.json"):
            note.write_text("{")
        with raises_naming(TakenError, run.name), claim(run):
            pass


def test_claim__in_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises_naming(OSError, "runs_dir", tmp_path / "file"), claim(tmp_path / "file" / "run"):
        pass

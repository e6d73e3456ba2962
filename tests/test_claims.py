"""One process at a time works on a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tta import claims
from tta.claims import TakenError, claim, is_taken

HOLD = """
import sys, time
from pathlib import Path
from tta.claims import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "tent-0123456789"


def hold(run: Path) -> subprocess.Popen[str]:
    """Hold a claim in another process."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_claim_is_its_holders_alone_until_that_ends_however_it_does(run: Path, number: signal.Signals) -> None:
    holder = hold(run)
    assert is_taken(run)
    with pytest.raises(TakenError) as error, claim(run):
        pass
    assert str(error.value).startswith(f"{run.name} is being run by process {holder.pid} on ")
    assert error.value.path == run
    holder.send_signal(number)
    holder.communicate()
    assert not is_taken(run)
    with claim(run):
        assert is_taken(run)


def test_a_claim_ends_with_its_block_also_after_an_error(run: Path) -> None:
    with pytest.raises(KeyError), claim(run):
        raise KeyError
    with claim(run):
        pass
    assert [file.name for file in (run.parent / ".claims").iterdir()] == [f"{run.name}.lock"]


def test_claims_of_different_runs_have_nothing_to_do_with_each_other(run: Path) -> None:
    other = run.with_name("eta-0123456789")
    with claim(run):
        assert is_taken(run)
        assert not is_taken(other)
        with claim(other):
            assert is_taken(run)
            assert is_taken(other)
        assert is_taken(run)
        assert not is_taken(other)


def test_an_owner_that_has_not_yet_said_who_it_is(run: Path) -> None:
    with claim(run):
        claims._note(claims._place(run)).write_text("{")
        with pytest.raises(TakenError, match="is being run by another process"), claim(run):
            pass


def test_a_folder_that_cannot_be_locked_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = r"runs_dir: .* cannot be written or locked .*choose another with runs_dir="
    with pytest.raises(OSError, match=message), claim(tmp_path / "file" / "run"):
        pass

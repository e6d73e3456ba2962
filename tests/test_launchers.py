"""Sweeps on several processes: joblib, submitit's local executor, and Ray on a cluster of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers.forks import forked
from helpers.sweep_files import left, words
from tta import cli

REPOSITORY = Path(__file__).resolve().parents[1]
NEEDED = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit": "hydra_plugins.hydra_submitit_launcher",
    "ray": "ray",
}


def needs(extra: str) -> pytest.MarkDecorator:
    there = find_spec(NEEDED[extra]) is not None
    return pytest.mark.skipif(not there, reason=f"not installed: pip install 'tta[{extra}]'")


@pytest.fixture(scope="module")
def alone(files: Path) -> Path:
    """Results of the sweep in one process."""
    done = start(files, files / "alone").communicate(timeout=200)
    assert "2 job(s): 2 done" in done[0], done[1]
    return files / "alone"


def start(files: Path, runs_dir: Path, *launcher: str) -> subprocess.Popen[str]:
    """Start the sweep; for a launcher, which begins processes like the one that it is in, as a user does."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "TTA_CACHE": str(files / "cache"), "HOME": str(runs_dir.parent)}
    arguments = ["-m", *words(files), "method=deyo", "seed=0,1", "optimizer.lr=0.01", "checkpoint.every=1"]
    arguments += [f"runs_dir={runs_dir}", *launcher]
    pipe = subprocess.PIPE
    if not launcher:
        return forked(cli.main, "tta", *arguments, cwd=files, env=environment, stdout=pipe, stderr=pipe)
    command = [sys.executable, "-m", "tta", *arguments]
    return subprocess.Popen(command, cwd=files, env=environment, stdout=pipe, stderr=pipe, text=True)


def finish(sweep: subprocess.Popen[str]) -> str:
    """Wait for a sweep that gets all done, without a warning; return what it said."""
    out, error = sweep.communicate(timeout=200)
    assert sweep.returncode == 0, out + error
    assert "Warning" not in error
    return out + error


def owner(runs_dir: Path) -> Iterator[int]:
    """Process of a run that is under way, once it has a checkpoint."""
    for note in (runs_dir / ".claims").glob("[!.]*.json"):
        if (runs_dir / note.stem / "checkpoint").exists():
            yield json.loads(note.read_text())["process"]


def kill_one(sweep: subprocess.Popen[str], runs_dir: Path) -> None:
    """Kill a process that runs a job, in the middle of it."""
    end = time.monotonic() + 300  # Ray's processes are nice, and wait for what else a machine has to do
    while (victim := next(owner(runs_dir), None)) is None:
        assert time.monotonic() < end
        assert sweep.poll() is None, sweep.communicate()
        time.sleep(0.005)
    assert victim != sweep.pid
    os.kill(victim, signal.SIGKILL)


@needs("submitit")
def test_submitit_leaves_the_same_files(files: Path, alone: Path, tmp_path: Path) -> None:
    said = finish(start(files, tmp_path / "runs", "hydra/launcher=submitit_local"))
    assert "2 job(s): 2 done" in said
    assert left(tmp_path / "runs") == left(alone)


@needs("joblib")
def test_jobs_whose_process_is_killed_are_run_again(files: Path, alone: Path, tmp_path: Path) -> None:
    sweep = start(files, tmp_path / "runs", "hydra/launcher=joblib")
    kill_one(sweep, tmp_path / "runs")
    said = finish(sweep)
    assert "were lost (TerminatedWorkerError: " in said
    assert "goes on after" in said
    assert left(tmp_path / "runs") == left(alone)
    # The command is the user's, not that of a process that the launcher made.
    for file in (tmp_path / "runs").glob("*/summary.json"):
        assert "seed=0,1" in json.loads(file.read_text())["command"]


@needs("ray")
def test_ray_runs_a_job_again_whose_process_is_killed(files: Path, alone: Path, tmp_path: Path) -> None:
    sweep = start(files, tmp_path / "runs", "hydra/launcher=ray", "hydra.launcher.init.num_cpus=2")
    kill_one(sweep, tmp_path / "runs")
    said = finish(sweep)
    assert "goes on after" in said
    assert "2 job(s): 2 done" in said
    assert "were lost" not in said
    assert left(tmp_path / "runs") == left(alone)


@needs("ray")
def test_a_job_that_ray_gives_up_is_a_failed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from tta.launchers.ray import _returned

    def give_up(task: object) -> None:
        raise ray.exceptions.WorkerCrashedError

    monkeypatch.setattr(ray, "get", give_up)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        _ = _returned(None).return_value


def test_two_sweeps_at_once_share_the_runs(files: Path, alone: Path, tmp_path: Path) -> None:
    sweeps = [start(files, tmp_path / "runs") for _ in range(2)]
    said = [finish(sweep) for sweep in sweeps]
    assert all("2 job(s): " in text for text in said)
    assert "".join(said).count(": accuracy ") == 2  # of two jobs, each was run once
    assert left(tmp_path / "runs") == left(alone)

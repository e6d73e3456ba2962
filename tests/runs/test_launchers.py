"""Sweeps on several processes: joblib, submitit's local executor, and Ray on a cluster of this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus

from helpers.errors import assert_names
from helpers.sweep_files import left, words

REPOSITORY = Path(__file__).resolve().parents[2]
NEEDED = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit": "hydra_plugins.hydra_submitit_launcher",
    "ray": "ray",
}


def needs(extra: str) -> pytest.MarkDecorator:
    there = find_spec(NEEDED[extra]) is not None
    return pytest.mark.skipif(not there, reason=f"not installed: pip install 'tta[{extra}]'")


def start(files: Path, runs_dir: Path, *launcher: str) -> subprocess.Popen[str]:
    """Start the sweep, as a user does."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "TTA_CACHE": str(files / "cache"), "HOME": str(runs_dir.parent)}
    command = [sys.executable, "-m", "tta", "-m", *words(files), "method=deyo", "seed=0,1", "optimizer.lr=0.01"]
    command += ["checkpoint.every=1", f"runs_dir={runs_dir}", *launcher]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=files, env=environment, stdout=pipe, stderr=pipe, text=True)


def finish(sweep: subprocess.Popen[str]) -> str:
    """Wait for a sweep that gets all done, without a warning; return what it said."""
    out, error = sweep.communicate(timeout=200)
    assert sweep.returncode == 0, out + error
    assert "Warning" not in error
    return out + error


@pytest.fixture(scope="module")
def alone(files: Path) -> Path:
    """Results of the sweep in one process; two such sweeps at once, which share the runs."""
    said = [finish(sweep) for sweep in [start(files, files / "alone") for _ in range(2)]]
    assert len(re.findall(r"seed[01]: accuracy ", "".join(said))) == 2  # of two jobs, each was run once
    return files / "alone"


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


@pytest.mark.slow
@needs("submitit")
def test_submitit__leaves_the_same_files(files: Path, alone: Path, tmp_path: Path) -> None:
    finish(start(files, tmp_path / "runs", "hydra/launcher=submitit_local"))
    assert left(tmp_path / "runs") == left(alone)


@pytest.mark.slow
@needs("joblib")
def test_joblib__runs_a_killed_job_again(files: Path, alone: Path, tmp_path: Path) -> None:
    sweep = start(files, tmp_path / "runs", "hydra/launcher=joblib")
    kill_one(sweep, tmp_path / "runs")
    assert_names(finish(sweep), "TerminatedWorkerError")  # joblib gives up all jobs, and the sweep starts it anew
    assert left(tmp_path / "runs") == left(alone)
    # The command is the user's, not that of a process that the launcher made.
    for file in (tmp_path / "runs").glob("*/summary.json"):
        assert "seed=0,1" in json.loads(file.read_text())["command"]


@pytest.mark.slow
@needs("ray")
def test_ray__runs_a_killed_job_again(files: Path, alone: Path, tmp_path: Path) -> None:
    sweep = start(files, tmp_path / "runs", "hydra/launcher=ray", "hydra.launcher.init.num_cpus=2")
    kill_one(sweep, tmp_path / "runs")
    assert "WorkerCrashedError" not in finish(sweep)  # Ray itself starts the job anew
    assert left(tmp_path / "runs") == left(alone)


@needs("ray")
def test_ray__a_job_given_up_is_a_failed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other jobs go on."""
    import ray

    from tta.launchers.ray import launch

    def get(task: int) -> JobReturn:
        if task == 0:
            raise ray.exceptions.WorkerCrashedError
        return JobReturn(status=JobStatus.COMPLETED)

    cancelled: list[int] = []
    job = SimpleNamespace(remote=lambda *arguments: arguments[-1])
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "remote", lambda **options: lambda function: job)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "cancel", lambda task, force: cancelled.append(task))
    launcher: Any = SimpleNamespace(
        init={}, remote={"num_cpus": 1}, hydra_context=None, config=None, task_function=None
    )
    crashed, other = launch(launcher, [["seed=0"], ["seed=1"]], 0)
    assert other.status == JobStatus.COMPLETED
    assert crashed.status == JobStatus.FAILED
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        _ = crashed.return_value
    assert cancelled == [0, 1]

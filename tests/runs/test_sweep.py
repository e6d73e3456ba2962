"""Sweeps as a user runs them: what becomes of each job, and what is said of it."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn

from helpers.errors import assert_names, raises_naming
from helpers.own_parts import WATCH, Watching, own_words
from helpers.sweep_files import left
from tta.runs.lock import run_lock

Command = Callable[..., Any]
CALLS = 3  # batches of a run


@pytest.fixture
def sweep(tta_command: Command, tmp_path: Path) -> Command:
    """Call ``tta -m`` with parts that watch, in an empty folder."""
    arguments = own_words(tmp_path / "own", "method=watching", "stream.domains=1")
    return lambda *more: tta_command("-m", *arguments, *more)


def table(text: str) -> list[list[str]]:
    """Cells of the table's rows."""
    rows = [line.split() for line in text.splitlines()]
    return [row for row in rows if row and row[0].isdigit() and "job(s):" not in row]


def done(runs: Path) -> set[tuple[str, int]]:
    """Method and seed of the finished runs."""
    found = [json.loads(file.read_text()) for file in runs.glob("*/summary.json")]
    return {(of["choices"]["method"], of["config"]["seed"]) for of in found}


def test_sweep__goes_on_after_a_failed_job(sweep: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong is in the table, without a trace; what is finished is not run again, unless it is forced."""
    sweep("seed=1")
    capsys.readouterr()
    with raises_naming(SystemExit, "error", "2", "4"):
        sweep("method=watching,tent", "seed=1,-1")
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert_names(said.err, "seed", "-1")
    rows = table(said.out)
    assert [row[:4] for row in rows] == [
        ["0", "watching", "1", "skipped"],
        ["1", "watching", "-1", "failed"],
        ["2", "tent", "1", "done"],
        ["3", "tent", "-1", "failed"],
    ]
    assert_names(" ".join(rows[1][4:]), "seed", "-1")
    (summary,) = (tmp_path / "runs").glob("*tent*/summary.json")
    assert float(rows[2][4]) == pytest.approx(100 * json.loads(summary.read_text())["accuracy"], abs=0.01)
    assert done(tmp_path / "runs") == {("watching", 1), ("tent", 1)}
    WATCH.clear()
    sweep("seed=1,2", "force=true")
    assert WATCH.calls == 2 * CALLS


def test_sweep__traces_an_unexpected_error(
    sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Watching.step

    def broken(self: Watching, images: torch.Tensor) -> torch.Tensor:
        if WATCH.calls == 2:
            WATCH.images.append(images)
            raise RuntimeError("out of memory")
        return step(self, images)

    monkeypatch.setattr(Watching, "step", broken)
    with pytest.raises(SystemExit):
        sweep("seed=0,1")
    said = capsys.readouterr()
    assert "Traceback" in said.err
    assert [row[2] for row in table(said.out)] == ["failed", "done"]
    assert_names(said.out, "RuntimeError", "out of memory")
    assert done(tmp_path / "runs") == {("watching", 1)}


def test_sweep__runs_nothing_where_an_option_is_wrong(sweep: Command, tmp_path: Path) -> None:
    with raises_naming(SystemExit, "method/tentt", "tent"):
        sweep("method=watching,tentt")
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("own*"))
    assert WATCH.calls == 0


def test_sweep__ends_at_ctrl_c(
    sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At once, with what was done; the same command does the rest."""
    step = Watching.step

    def interrupted(self: Watching, images: torch.Tensor) -> torch.Tensor:
        if WATCH.calls == CALLS + 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Watching, "step", interrupted)
        with pytest.raises(SystemExit) as exit_:
            sweep("seed=0,1,2")
    assert exit_.value.code == 130
    states = [row[2] for row in table(capsys.readouterr().out)]
    assert states[0] == "done"
    assert not {"done", "skipped", "failed"} & set(states[1:])
    assert done(tmp_path / "runs") == {("watching", 0)}
    sweep("seed=0,1")
    assert [row[2] for row in table(capsys.readouterr().out)] == ["skipped", "done"]


def test_sweep__forced_forgets_checkpoints(sweep: Command, tmp_path: Path) -> None:
    WATCH.clear(stop=2)
    with pytest.raises(SystemExit):
        sweep("checkpoint.every=1")
    assert list((tmp_path / "runs").glob("*/checkpoint"))
    WATCH.clear()
    sweep("checkpoint.every=1", "force=true")
    assert WATCH.calls == CALLS
    assert not list((tmp_path / "runs").glob("*/checkpoint"))


def test_sweep__takes_over_what_another_process_leaves(
    sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep("seed=1")
    (run,) = (tmp_path / "runs").glob("own*")
    expected = left(tmp_path / "runs")
    (run / "summary.json").unlink()
    other, waits, sleep = ExitStack(), [], time.sleep

    def wait(seconds: float) -> None:
        if seconds < 0.1:
            sleep(seconds)  # for a program
            return
        waits.append(seconds)
        if len(waits) == 3:
            other.close()  # that process is killed

    monkeypatch.setattr("time.sleep", wait)
    other.enter_context(run_lock(run))
    capsys.readouterr()
    sweep("seed=0,1")
    assert len(waits) == 3
    said = capsys.readouterr()
    assert said.err.count(run.name) == 1  # told once, however long it takes
    assert_names(said.err, os.getpid())
    assert [row[2] for row in table(said.out)] == ["done"] * 2
    assert {name: content for name, content in left(tmp_path / "runs").items() if name in expected} == expected


def test_run__of_another_process_is_an_error(tta_command: Command, tmp_path: Path) -> None:
    arguments = own_words(tmp_path / "own", "method=watching")
    tta_command(*arguments)
    (run,) = (tmp_path / "runs").glob("own*")
    before = left(tmp_path / "runs")
    with run_lock(run), raises_naming(SystemExit, run.name, os.getpid()):
        tta_command(*arguments, "force=true")
    assert left(tmp_path / "runs") == before


def test_sweep__names_packages_a_launcher_needs(sweep: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with raises_naming(SystemExit, "hydra/launcher=ray", "'ray'", "tta[ray]"):
        sweep("hydra/launcher=ray")


@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Have the launcher lose all jobs but the first, so many times; it returns the seeds of its calls to come."""
    Plugins.instance()  # Hydra imports its launcher once more
    launcher = importlib.import_module("hydra._internal.core_plugins.basic_launcher").BasicLauncher

    def lose(times: int) -> list[list[str]]:
        launch, calls = launcher.launch, []

        def launched(self: Any, jobs: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
            calls.append([next(word for word in job if word.startswith("seed=")) for job in jobs])
            if len(calls) > times:
                return launch(self, jobs, first)
            launch(self, jobs[:1], first)
            WATCH.clear(stop=1)
            try:
                launch(self, jobs[1:2], first + 1)  # its process is killed in the middle
            except KeyboardInterrupt:
                WATCH.clear()
            raise RuntimeError("a worker died\nand more")

        monkeypatch.setattr(launcher, "launch", launched)
        return calls

    return lose


def test_sweep__launches_lost_jobs_once_more(
    sweep: Command, losing: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = losing(1)
    sweep("seed=0,1,2")
    assert calls == [["seed=0", "seed=1", "seed=2"], ["seed=1", "seed=2"]]
    said = capsys.readouterr()
    assert [row[2] for row in table(said.out)] == ["done"] * 3
    assert_names(said.err, "2", "RuntimeError", "a worker died")
    assert "and more" not in said.err
    assert done(tmp_path / "runs") == {("watching", seed) for seed in (0, 1, 2)}


def test_sweep__names_jobs_that_are_lost_twice(
    sweep: Command, losing: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever an older sweep has left in its folder of what became of jobs with these numbers."""
    sweep("seed=0,1,2", "hydra.sweep.dir=same", "runs_dir=older")
    losing(2)
    capsys.readouterr()
    with raises_naming(SystemExit, "1", "3", "a worker died"):
        sweep("seed=0,1,2", "hydra.sweep.dir=same")
    states = [row[2] for row in table(capsys.readouterr().out)]
    assert [state == "done" for state in states] == [True, True, False]
    assert done(tmp_path / "runs") == {("watching", 0), ("watching", 1)}


@pytest.mark.slow
def test_sweep__of_many_shows_what_is_not_done(sweep: Command, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = ",".join(str(seed - 1) for seed in range(52))
    with pytest.raises(SystemExit):
        sweep(f"seed={seeds}")
    said = capsys.readouterr().out
    assert [row[:3] for row in table(said)] == [["0", "-1", "failed"]]
    assert_names(said.splitlines()[-1], "52", "51", "1")

"""Sweeps as a user runs them: what becomes of each job, and what is said of it."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl

import tta.runner
from helpers.sweep_files import left, words
from tta import cli, sweeps
from tta.claims import claim
from tta.sweeps import Outcome, Record, Sweep, SweepError, run_sweep

Command = Callable[..., Any]


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch, files: Path, tmp_path: Path) -> Command:
    """Call ``tta -m`` with the small data set, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("TTA_CACHE", str(tmp_path / "cache"))

    def call(*arguments: str) -> None:
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        small = [
            word for word in words(files) if not any(a.startswith(word.partition("=")[0] + "=") for a in arguments)
        ]
        monkeypatch.setattr(sys, "argv", ["tta", "-m", *small, "stream.corruptions=fog", *arguments])
        cli.main()

    return call


def table(text: str) -> list[list[str]]:
    """Cells of the table's rows."""
    rows = [line.split() for line in text.splitlines()]
    return [row for row in rows if row and row[0].isdigit() and "job(s):" not in row]


def test_a_failed_job_does_not_stop_the_others_and_its_reason_is_in_the_table(
    sweep: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep("method=source", "seed=1")
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        sweep("method=source,tent", "seed=0,1,-1", "optimizer.lr=0.01")
    assert str(exit_.value.code).startswith("tta: error: 2 of 6 jobs did not get done: the same command runs them")
    said = capsys.readouterr()
    reason = "seed must be a whole number of at least 0, got -1"
    assert said.err.count(f"tta: error: {reason}\n") == 2
    assert "Traceback" not in said.err
    rows = table(said.out)
    assert [row[:4] for row in rows] == [
        ["0", "source", "0", "done"],
        ["1", "source", "1", "skipped"],
        ["2", "source", "-1", "failed"],
        ["3", "tent", "0", "done"],
        ["4", "tent", "1", "done"],
        ["5", "tent", "-1", "failed"],
    ]
    assert " ".join(rows[2][4:]) == reason
    assert rows[0][5] == "%"
    assert "6 job(s): 3 done, 2 failed, 1 skipped" in said.out
    assert len(list(tmp_path.rglob("summary.json"))) == 4


def test_each_job_is_composed_once_and_is_the_job_that_was_asked_for(
    sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed: list[tuple[str, ...]] = []
    load = ConfigLoaderImpl.load_sweep_config

    def counted(self: Any, master_config: Any, sweep_overrides: list[str]) -> Any:
        composed.append(tuple(word for word in sweep_overrides if word.startswith(("method=", "seed="))))
        return load(self, master_config, sweep_overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", counted)
    sweep("method=source,bn_adapt", "seed=3,4")
    assert composed == [(f"method={m}", f"seed={s}") for m in ("source", "bn_adapt") for s in (3, 4)]
    found = [json.loads(file.read_text()) for file in tmp_path.rglob("summary.json")]
    assert {(of["choices"]["method"], of["config"]["seed"]) for of in found} == {
        (m, s) for m in ("source", "bn_adapt") for s in (3, 4)
    }


def test_a_sweep_that_gets_all_done_says_so(sweep: Command, capsys: pytest.CaptureFixture[str]) -> None:
    sweep("method=source", "seed=0,1")
    assert "2 job(s): 2 done" in capsys.readouterr().out


def test_an_error_that_nobody_expects_is_traced_and_does_not_stop_the_others(
    sweep: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    predict, calls = tta.runner.Runner._predict, itertools.count()

    def broken(self: tta.runner.Runner, images: torch.Tensor) -> torch.Tensor:
        if next(calls) == 2:
            raise RuntimeError("out of memory")
        return predict(self, images)

    monkeypatch.setattr(tta.runner.Runner, "_predict", broken)
    with pytest.raises(SystemExit):
        sweep("method=source", "seed=0,1")
    said = capsys.readouterr()
    assert "Traceback" in said.err
    assert [row[2] for row in table(said.out)] == ["failed", "done"]
    assert "RuntimeError: out of memory" in said.out


def test_a_wrong_option_is_told_before_anything_is_run(
    sweep: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="Could not find 'method/tentt'"):
        sweep("method=source,tentt")
    assert "job(s)" not in capsys.readouterr().out
    assert not list(tmp_path.rglob("batches.csv"))


def test_ctrl_c_ends_the_sweep_at_once_with_what_was_done(
    sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    predict, calls = tta.runner.Runner._predict, itertools.count()

    def interrupted(self: tta.runner.Runner, images: torch.Tensor) -> torch.Tensor:
        if next(calls) == 6:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        return predict(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(tta.runner.Runner, "_predict", interrupted)
        with pytest.raises(SystemExit) as exit_:
            sweep("method=source", "seed=0,1,2")
    assert exit_.value.code == 130
    said = capsys.readouterr()
    assert [row[2] for row in table(said.out)] == ["done", "interrupted", "not"]
    assert "3 job(s): 1 done, 1 interrupted, 1 not begun" in said.out
    sweep("method=source", "seed=0,1,2")
    assert "3 job(s): 2 done, 1 skipped" in capsys.readouterr().out


def test_force_begins_anew_and_a_finished_run_is_tidied(
    sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut_off(self: tta.runner.Runner, *arguments: object) -> None:
        save(self, *arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    save = tta.runner.Runner._save
    for force, said in (("false", "goes on after 10 of 40 images"), ("true", "")):
        with monkeypatch.context() as patch:
            patch.setattr(tta.runner.Runner, "_save", cut_off)
            with pytest.raises(SystemExit):
                sweep("method=source", "checkpoint.every=1", f"force={force}")
        assert list(tmp_path.rglob("checkpoint"))
        capsys.readouterr()
        sweep("method=source", f"force={force}")
        told = capsys.readouterr().err
        assert said in told
        assert ("goes on" in told) == (force == "false")
        assert not list(tmp_path.rglob("checkpoint"))
    (run,) = (tmp_path / "runs").glob("cifar*")
    expected = left(tmp_path / "runs")
    (run / "checkpoint").write_bytes(b"of a process that was killed after it wrote the summary")
    sweep("method=source")
    assert left(tmp_path / "runs") == expected


def test_a_run_of_another_process_is_waited_for_and_taken_over_when_that_dies(
    sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweeps, "POLL", 0.01)
    sweep("method=source", "seed=1", "runs_dir=known")
    (run,) = (tmp_path / "known").glob("cifar*")
    leave, held = threading.Event(), threading.Event()

    def other() -> None:
        with claim(tmp_path / "runs" / run.name):
            held.set()
            leave.wait(30)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait(30)
    is_taken, looks = sweeps.is_taken, itertools.count()

    def looked_at(path: Path) -> bool:
        if next(looks) == 3:
            leave.set()
            thread.join(30)
        return is_taken(path)

    monkeypatch.setattr(sweeps, "is_taken", looked_at)
    sweep("method=source", "seed=0,1,2")
    said = capsys.readouterr()
    assert f"{run.name} is being run by process {os.getpid()} on " in said.out
    assert said.err.count(f"waiting for {run.name}, process {os.getpid()} on ") == 1
    assert "3 job(s): 3 done" in said.out
    runs = left(tmp_path / "runs")
    assert {name: value for name, value in runs.items() if "csv" in name and name.startswith(run.name)} == {
        name: value for name, value in left(tmp_path / "known").items() if "csv" in name
    }


def test_a_single_run_of_another_process_is_an_error(
    sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep("method=source")
    (run,) = (tmp_path / "runs").glob("cifar*")
    before = left(tmp_path / "runs")
    with claim(run):
        monkeypatch.setattr(sys, "argv", ["tta", *sys.argv[2:], "force=true"])
        with pytest.raises(SystemExit, match=rf"tta: error: {run.name} is being run by process {os.getpid()} on "):
            cli.main()
    assert left(tmp_path / "runs") == before


def test_a_launcher_that_is_not_installed_is_told(sweep: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match=r"hydra/launcher=ray needs packages .*No module named 'ray'.*'tta\[ray\]'"):
        sweep("hydra/launcher=ray", "method=source")


class Launcher:
    """Does with each job what it is told to, by number: a job without a word of it is lost."""

    def __init__(self, record: Record, states: dict[int, str], error: Exception | None = None) -> None:
        self.record = record
        self.states = states
        self.error = error
        self.launched: list[list[str]] = []

    def __call__(self, overrides: Any, first: int) -> Any:
        for number, job in enumerate(overrides, first):
            self.launched.append(job)
            if number in self.states:
                self.record.write(number, Outcome(self.states[number], "why"))
        if self.error and len(self.launched) <= 3:
            raise self.error
        return []


JOBS = [[f"seed={seed}", "method=tent"] for seed in range(3)]


@pytest.fixture
def record(tmp_path: Path) -> Record:
    record = Record(tmp_path / "sweep")
    record.start(["tta"])
    return record


@pytest.mark.parametrize("error", [None, RuntimeError("a worker\ndied")])
def test_lost_jobs_have_a_second_chance(
    record: Record, capsys: pytest.CaptureFixture[str], error: Exception | None
) -> None:
    launcher = Launcher(record, {0: "done", 1: "begun", 3: "done", 4: "done"}, error)
    sweep = Sweep(record, launcher)
    sweep.launch(JOBS)
    assert launcher.launched == [*JOBS, *JOBS[1:]]
    assert [sweep.outcome(job).state for job in sweep.jobs] == ["done"] * 3
    because = " (RuntimeError: a worker)" if error else ""
    assert f"2 job(s) were lost{because}; once more" in capsys.readouterr().err
    sweep.check()


def test_jobs_that_are_lost_twice_are_told_with_the_launchers_words(
    record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = Launcher(record, {0: "done", 1: "begun", 3: "begun"}, RuntimeError("a worker died"))
    reason = r"2 of 3 jobs did not get done \(RuntimeError: a worker died\)"
    with pytest.raises(SweepError, match=reason), run_sweep(record.folder, launcher) as sweep:
        sweep.launch(JOBS)
    assert [row[:3] for row in table(capsys.readouterr().out)] == [
        ["0", "0", "done"],
        ["1", "1", "lost"],
        ["2", "2", "not"],
    ]


def test_a_long_table_shows_what_did_not_get_done(record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    states = {number: "failed" if number == 7 else "done" for number in range(100)}
    sweep = Sweep(record, Launcher(record, states))
    sweep.launch([[f"seed={seed}"] for seed in range(100)])
    sweep.show()
    said = capsys.readouterr().out
    assert table(said) == [["7", "7", "failed", "why"]]
    assert "100 job(s): 99 done, 1 failed" in said


def test_the_record_of_an_older_sweep_in_the_same_folder_counts_for_nothing(record: Record) -> None:
    record.write(0, Outcome("done"))
    record.start(["tta", "again"])
    assert record.read(0) is None
    assert record.command == ["tta", "again"]


@pytest.fixture(autouse=True)
def _path() -> Iterator[None]:
    before = [*sys.path]
    yield
    sys.path[:] = before

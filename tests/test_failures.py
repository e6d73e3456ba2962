"""A full disk and a failing wandb: rows that are written stay, and nothing unfinished looks finished."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from helpers.forks import forked
from helpers.sweep_files import N, left, words
from tta import cli
from tta.checkpoints import Checkpoints
from tta.runs import CLASS_COLUMNS, RunDirectory

Command = Callable[..., Any]

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")


@pytest.fixture
def run(files: Path, tta_command: Command) -> Callable[..., None]:
    """Run three domains of four batches, with a checkpoint before each batch."""
    return lambda *more: tta_command(*words(files), "method=tent", "checkpoint.every=1", *more)


@pytest.fixture
def undisturbed(run: Callable[..., None], tmp_path: Path) -> dict[str, Any]:
    """What such a run leaves; it is not there any more."""
    run()
    files = left(tmp_path / "runs")
    (tmp_path / "runs").rename(tmp_path / "undisturbed")
    return files


def directory(runs_dir: Path) -> Path:
    (path,) = runs_dir.glob("[!.]*")
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as lines:
        return list(csv.DictReader(lines))


@needs_full
@pytest.mark.parametrize(("table", "batches"), [("batches", 0), ("domains", 1), ("classes", 1)])
def test_a_table_that_no_longer_fits_ends_the_run_and_keeps_the_others(
    run: Callable[..., None], undisturbed: dict[str, Any], tmp_path: Path, table: str, batches: int
) -> None:
    path = tmp_path / "runs" / directory(tmp_path / "undisturbed").name
    path.mkdir(parents=True)
    (path / f"{table}.csv").symlink_to(FULL)
    with pytest.raises(SystemExit, match=r"the disk is full \(.*No space left.*make room, and the same command runs"):
        run()
    assert not (path / "summary.json").exists()
    if table != "batches":
        assert len(rows(path / "batches.csv")) == batches
    (path / f"{table}.csv").unlink()
    run()
    assert left(tmp_path / "runs") == undisturbed


def _asked(files: dict[str, Any]) -> dict[str, Any]:
    """The files that tell how a run was asked for."""
    return {name: content for name, content in files.items() if name.endswith(("config.yaml", "summary.json"))}


@pytest.mark.parametrize(
    ("name", "before", "batches"),
    [("config.yaml", 0, 0), ("checkpoint", 0, 1), ("checkpoint", 5, 6), ("summary.json", 0, 12)],
)
def test_a_file_that_no_longer_fits_ends_the_run_which_then_goes_on(
    run: Callable[..., None],
    undisturbed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    before: int,
    batches: int,
) -> None:
    replace = Path.replace
    times = 0

    def full(self: Path, target: Path) -> Path:
        nonlocal times
        times += target.name == name
        if target.name == name and times > before:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(SystemExit, match=r"the disk is full .*The rows so far are in .*: make room"):
            run()
    path = directory(tmp_path / "runs")
    assert not (path / "summary.json").exists()
    assert len(rows(path / "batches.csv")) == batches
    assert not [file for file in path.iterdir() if file.name.startswith(".")]  # nothing half-written
    capsys.readouterr()
    run()
    # With a checkpoint from before the disk was full it goes on from there.
    assert ("goes on after" in capsys.readouterr().err) == (batches > 1)
    assert left(tmp_path / "runs") == undisturbed


@needs_full
def test_closing_writes_what_waits_for_the_other_tables_too(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    (run.path / "batches.csv").symlink_to(FULL)
    row = dict.fromkeys(CLASS_COLUMNS, 1)
    with pytest.raises(OSError, match="No space left"), run:
        run.write("classes", row)
    assert rows(run.path / "classes.csv") == [dict.fromkeys(CLASS_COLUMNS, "1")]


@needs_full
def test_a_checkpoint_that_no_longer_fits_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoint", {"run": "a"})
    checkpoints.save({"files": {}, "batch": 1})

    def full(dir: Path, prefix: str, suffix: str) -> tuple[int, str]:  # noqa: A002 - as in the function it stands for
        (dir / f"{prefix}x{suffix}").symlink_to(FULL)
        return os.open(os.devnull, os.O_RDONLY), str(dir / f"{prefix}x{suffix}")

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkstemp", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save({"files": {}, "batch": 2})
    again = Checkpoints(tmp_path / "checkpoint", {"run": "a"})
    again.load(pytest.fail)
    assert again.state == {"files": {}, "batch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


class Service:
    """A run of wandb's that fails where it is told to."""

    def __init__(self, fails: str, told: list[str]) -> None:
        self.fails = fails
        self.told = told
        self.summary = self

    def log(self, values: dict[str, Any], step: int) -> None:
        self._do("log", step >= 2)

    def update(self, values: dict[str, Any]) -> None:
        self._do("domain" if any(key.startswith("domain/") for key in values) else "summary")

    def finish(self) -> None:
        self._do("finish")

    def _do(self, what: str, now: bool = True) -> None:
        self.told.append(what)
        if what == self.fails and now:
            raise ConnectionError("https://me:s3cret@wandb.example is not there")


@pytest.mark.parametrize("fails", ["log", "domain", "summary", "finish", "nothing"])
def test_wandb_that_fails_once_the_run_has_begun_costs_nothing_but_itself(
    run: Callable[..., None],
    undisturbed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails: str,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(wandb, "init", lambda **_: Service(fails, told))
    capsys.readouterr()
    run("logger=wandb")
    error = capsys.readouterr().err
    files = {name: content for name, content in left(tmp_path / "runs").items() if "/wandb/" not in name}
    assert files == {**undisturbed, **_asked(files)}
    assert json.loads((directory(tmp_path / "runs") / "summary.json").read_text())["images"] == 3 * N
    if fails == "nothing":
        assert told == [*(["log"] * 4 + ["domain"]) * 3, "summary", "finish"]
        assert error == ""
    else:
        assert error == (
            "logger.wandb: ConnectionError: https://***@wandb.example is not there; the run goes on without it\n"
        )
        assert told[-1] == fails  # and is asked for nothing more


def test_wandb_that_cannot_begin_costs_no_rows_of_before(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    before = left(tmp_path / "runs")

    def refuse(**_: Any) -> None:
        raise wandb.errors.UsageError("api_key not configured")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(SystemExit, match=r"logger=wandb could not start \(api_key not .*logger.wandb.mode=offline"):
        run("logger=wandb", "force=true")
    after = left(tmp_path / "runs")
    assert {name: after[name] for name in before} == before  # also where it was to be done again


def test_wandb_whose_end_hangs_has_the_run_finished_before(files: Path, tmp_path: Path) -> None:
    def nothing(*arguments: Any, **options: Any) -> None: ...

    def hang() -> None:
        wandb.init = lambda **_: SimpleNamespace(log=nothing, summary={}, finish=lambda: time.sleep(600))
        cli.main()

    options = [*words(files), "method=source", "logger=wandb", "stream.limit=20"]
    with forked(hang, "tta", *options, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not (found := list(tmp_path.glob("runs/*/summary.json"))) and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.05)
        assert process.poll() is None  # it hangs
        process.kill()
    assert json.loads(found[0].read_text())["images"] == 60
    assert len(rows(found[0].with_name("batches.csv"))) == 6

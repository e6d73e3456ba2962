"""A full disk and a failing wandb: rows that are written stay, and nothing unfinished looks finished."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb

from helpers.errors import assert_names, raises_naming
from helpers.sweep_files import N, left, words
from tta.runs.checkpoint import Checkpoint
from tta.runs.directory import CLASS_COLUMNS, RunDirectory

Command = Callable[..., Any]
Run = Callable[..., None]

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")


@pytest.fixture
def run(files: Path, tta_command: Command) -> Run:
    """Run three domains of four batches, with a checkpoint before each batch."""
    return lambda *more: tta_command(*words(files), "method=tent", "checkpoint.every=1", *more)


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    return {}


@pytest.fixture
def undisturbed(run: Run, tmp_path: Path, kept: dict[str, Any]) -> dict[str, Any]:
    """What such a run leaves; it is not there any more."""
    if not kept:
        run()
        kept.update(left(tmp_path / "runs"))
        (tmp_path / "runs").rename(tmp_path / "undisturbed")
    return kept


def directory(runs_dir: Path) -> Path:
    (path,) = runs_dir.glob("[!.]*")
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as lines:
        return list(csv.DictReader(lines))


@needs_full
@pytest.mark.parametrize(("table", "batches"), [("batches", 0), ("domains", 1)])
def test_full_disk__no_room_for_a_table(
    run: Run, undisturbed: dict[str, Any], tmp_path: Path, table: str, batches: int
) -> None:
    """The other tables keep their rows, and the same command runs it again when there is room."""
    (name,) = {Path(file).parts[0] for file in undisturbed}
    path = tmp_path / "runs" / name
    path.mkdir(parents=True)
    (path / f"{table}.csv").symlink_to(FULL)
    with raises_naming(SystemExit, os.strerror(errno.ENOSPC)):
        run()
    assert not (path / "summary.json").exists()
    if table != "batches":
        assert len(rows(path / "batches.csv")) == batches
    (path / f"{table}.csv").unlink()
    run()
    assert left(tmp_path / "runs") == undisturbed


@pytest.mark.parametrize(
    ("name", "before", "batches"),
    [("config.yaml", 0, 0), ("checkpoint", 5, 6), ("summary.json", 0, 12)],
)
def test_full_disk__no_room_for_a_file(
    run: Run,
    undisturbed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    before: int,
    batches: int,
) -> None:
    """``before`` of its kind were written; the run then goes on from its last checkpoint."""
    replace = Path.replace
    times = 0

    def full(self: Path, target: Path) -> Path:
        nonlocal times
        times += target.name == name
        if target.name == name and times > before:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with raises_naming(SystemExit, os.strerror(errno.ENOSPC), "runs"):
            run()
    path = directory(tmp_path / "runs")
    assert not (path / "summary.json").exists()
    assert len(rows(path / "batches.csv")) == batches
    assert not [file for file in path.iterdir() if file.name.startswith(".")]  # nothing half-written
    written = rows(path / "batches.csv")
    run()
    assert left(tmp_path / "runs") == undisturbed
    # With its seconds, the first row is that of before: the run went on from a checkpoint.
    assert rows(path / "batches.csv")[:1] == written[:1] or not written


@needs_full
def test_directory__closing_writes_the_other_tables(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    (run.path / "batches.csv").symlink_to(FULL)
    row = dict.fromkeys(CLASS_COLUMNS, 1)
    with raises_naming(OSError, errno.ENOSPC), run.open("", None):
        run.write("classes", row)
    assert rows(run.path / "classes.csv") == [dict.fromkeys(CLASS_COLUMNS, "1")]


@needs_full
def test_checkpoint__without_room_leaves_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoint(tmp_path / "checkpoint", {"run": "a"})
    checkpoints.save({"files": {}, "batch": 1})

    def full(dir: Path, prefix: str, suffix: str) -> tuple[int, str]:  # noqa: A002 - as in the function it stands for
        (dir / f"{prefix}x{suffix}").symlink_to(FULL)
        return os.open(os.devnull, os.O_RDONLY), str(dir / f"{prefix}x{suffix}")

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkstemp", full)
        with raises_naming(OSError, errno.ENOSPC):
            checkpoints.save({"files": {}, "batch": 2})
    again = Checkpoint(tmp_path / "checkpoint", {"run": "a"})
    again.load()
    assert again.state == {"files": {}, "batch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


class Service:
    """A run of wandb's that fails where it is told to."""

    def __init__(self, fails: str, told: list[str], finished: Callable[[], bool]) -> None:
        self.fails = fails
        self.told = told
        self.finished = finished
        self.summary = self

    def log(self, values: dict[str, Any], step: int) -> None:
        self._do("log", step >= 2)

    def update(self, values: dict[str, Any]) -> None:
        self._do("domain" if any(key.startswith("domain/") for key in values) else "summary")

    def finish(self) -> None:
        assert self.finished()  # wandb may hang here: by then everything is written
        self._do("finish")

    def _do(self, what: str, now: bool = True) -> None:
        self.told.append(what)
        if what == self.fails and now:
            raise ConnectionError("https://me:s3cret@wandb.example is not there")


@pytest.mark.parametrize("fails", ["log", "finish", "nothing"])
def test_wandb__failing_costs_nothing_but_itself(
    run: Run,
    undisturbed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails: str,
) -> None:
    told: list[str] = []
    service = Service(fails, told, lambda: (directory(tmp_path / "runs") / "summary.json").exists())
    monkeypatch.setattr(wandb, "init", lambda **_: service)
    capsys.readouterr()
    run("logger=wandb")
    error = capsys.readouterr().err
    files = {name: content for name, content in left(tmp_path / "runs").items() if "/wandb/" not in name}
    # But for the files that say how the run was asked for, they are those of the run without wandb.
    asked = {name: content for name, content in files.items() if name.endswith(("config.yaml", "summary.json"))}
    assert files == {**undisturbed, **asked}
    assert json.loads((directory(tmp_path / "runs") / "summary.json").read_text())["images"] == 3 * N
    if fails == "nothing":
        assert told == [*(["log"] * 4 + ["domain"]) * 3, "summary", "finish"]
        assert error == ""
    else:
        assert_names(error, "logger.wandb", "ConnectionError", "wandb.example")
        assert "s3cret" not in error
        assert error.count("\n") == 1  # told once
        assert told[-1] == fails  # and is asked for nothing more


def test_wandb__that_cannot_begin_costs_no_rows(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a finished run was to be run again."""
    run()
    before = left(tmp_path / "runs")

    def refuse(**_: Any) -> None:
        raise wandb.errors.UsageError("api_key not configured")

    monkeypatch.setattr(wandb, "init", refuse)
    with raises_naming(SystemExit, "logger=wandb", "api_key", "logger.wandb.mode=offline"):
        run("logger=wandb", "force=true")
    after = left(tmp_path / "runs")
    assert {name: after[name] for name in before} == before

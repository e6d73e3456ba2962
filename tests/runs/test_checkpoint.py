"""A run that is cut off goes on to the same files as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tta
from helpers.errors import assert_names
from helpers.own_parts import WATCH, own_words
from helpers.sweep_files import left, words
from tta.methods import Tent

Command = Callable[..., Any]
BATCHES = 9  # three domains of 28 images, of which one in seven cannot be read, in batches of 10
SKIPPED = 4  # of a domain


@pytest.fixture
def own(tta_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a method that draws from all generators; return how many batches it was given, or None if cut off."""
    fixed = ["method=drawing", "objective=adadem", "optimizer=adam", "optimizer.lr=0.05"]
    fixed += ["stream.domains=3", "stream.images=28", "stream.batch_size=10", "stream.broken=7"]

    def call(*more: str, stop: int | None = None) -> int | None:
        arguments = own_words(tmp_path / "own", *fixed, *more)
        WATCH.clear(stop)
        np.random.seed(0)  # noqa: NPY002 - tta seeds torch alone
        random.seed(0)
        if stop is None:
            tta_command(*arguments)
            return WATCH.calls
        with pytest.raises(SystemExit) as end:
            tta_command(*arguments)
        assert end.value.code == 130
        return None

    return call


def only(runs: Path) -> Path:
    (folder,) = runs.glob("own*")
    return folder


def tables(runs: Path) -> dict[str, Any]:
    return {name: content for name, content in left(runs).items() if name.endswith(".csv")}


@pytest.mark.parametrize(
    ("options", "stop", "cuts"),
    [
        (("scenario=continual", "checkpoint.every=1"), 2, 4),
        (("scenario=mixed", "checkpoint.every=2"), 3, 3),  # rows that the checkpoint does not know go
        (("scenario=recurring", "scenario.rounds=2", "stream.domains=2"), 5, 3),  # checkpoints between domains alone
    ],
)
def test_run__cut_off_again_and_again(
    own: Command, tmp_path: Path, options: tuple[str, ...], stop: int, cuts: int
) -> None:
    own(*options)
    expected = left(tmp_path / "runs")
    (tmp_path / "runs").rename(tmp_path / "undisturbed")
    (summary,) = (content for name, content in expected.items() if name.endswith("summary.json"))
    assert len(summary["skipped"]) == SKIPPED * len(summary["domains"])
    for _ in range(cuts):
        own(*options, stop=stop)
        assert not (only(tmp_path / "runs") / "summary.json").exists()
    assert 1 <= own(*options) <= stop
    assert left(tmp_path / "runs") == expected


def test_run__seconds_of_its_parts_add_up(own: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that goes on by one at each look."""
    now = iter(range(100_000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(now)))

    def seconds(runs: str) -> float:
        return json.loads((only(tmp_path / runs) / "summary.json").read_text())["seconds"]

    own("runs_dir=undisturbed", "checkpoint.every=1")
    own("runs_dir=cut", "checkpoint.every=1", stop=8)
    own("runs_dir=cut", "checkpoint.every=1")
    assert seconds("cut") > 0.8 * seconds("undisturbed")


@pytest.fixture
def again(own: Command, tmp_path: Path) -> Command:
    """Cut a run off before its sixth batch; call it again after a change, and return how many batches that took."""
    own("checkpoint.every=1", stop=5)
    (tmp_path / "runs").rename(tmp_path / "cut")
    own("checkpoint.every=1")
    undisturbed = tables(tmp_path / "runs")

    def call(change: Callable[[Path], Any], *more: str) -> int:
        shutil.rmtree(tmp_path / "runs")
        shutil.copytree(tmp_path / "cut", tmp_path / "runs")
        change(only(tmp_path / "runs"))
        batches: int = own("checkpoint.every=1", *more)
        assert tables(tmp_path / "runs") == undisturbed
        return batches

    return call


def spoil(change: Callable[[bytes], bytes]) -> Callable[[Path], int]:
    return lambda run: (run / "checkpoint").write_bytes(change((run / "checkpoint").read_bytes()))


def test_checkpoint__is_used_only_if_whole_and_its_own(
    own: Command, again: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is read as data alone: who can write into the runs must not be able to have anything called."""
    asked: list[Any] = []
    load = torch.load

    def asking(*arguments: Any, **options: Any) -> Any:
        asked.append(options["weights_only"])
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", asking)
    assert again(lambda run: None) == BATCHES - 5
    assert asked == [True]
    own("checkpoint.every=1", "seed=1", "runs_dir=other", stop=5)
    for change in (
        spoil(lambda content: b""),
        spoil(lambda content: content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]),
        spoil(lambda content: b"[]\n" + content),
        lambda run: (run / "batches.csv").write_text("step\n"),
        lambda run: shutil.copy(only(tmp_path / "other") / "checkpoint", run),
        lambda run: monkeypatch.setattr(torch, "get_num_threads", lambda: 64),  # which round otherwise
    ):
        capsys.readouterr()
        assert again(change) == BATCHES
        assert_names(capsys.readouterr().err, "checkpoint")


def test_checkpoint__of_other_code_is_not_used(own: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of a class of one's own; see below for that of the package."""
    for line, stop in (("", 5), ("x = 1", None)):
        (tmp_path / "changing.py").write_text(
            f"from helpers.own_parts import Drawing\n\nclass Mine(Drawing):\n    pass\n{line}\n"
        )
        monkeypatch.delitem(sys.modules, "changing", raising=False)
        batches = own("method._target_=changing.Mine", "checkpoint.every=1", stop=stop)
    assert batches == BATCHES


def test_checkpoint__with_an_object_that_is_not_read(
    own: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a class that is neither known to be data nor the method's own."""
    (tmp_path / "foreign.py").write_text(
        "from decimal import Decimal\nfrom helpers.own_parts import Drawing\n\nclass Mine(Drawing):\n"
        "    def __init__(self, *arguments, **options):\n        super().__init__(*arguments, **options)\n"
        "        self.price = Decimal(1)\n"
    )
    options = ("method._target_=foreign.Mine", "checkpoint.every=1")
    own(*options, stop=5)
    assert own(*options) == BATCHES
    assert_names(capsys.readouterr().err, "checkpoint", "Decimal")
    resumed = tables(tmp_path / "runs")
    own(*options, "force=true")
    assert tables(tmp_path / "runs") == resumed


@pytest.mark.slow
def test_checkpoint__of_another_package_is_not_used(files: Path, tmp_path: Path) -> None:
    package = Path(tta.__file__).parent
    shutil.copytree(package, tmp_path / "tta", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(package.parent / "configs", tmp_path / "configs")
    (tmp_path / "mine.py").write_text(
        "import os\nfrom tta.methods import Tent\n\nclass Mine(Tent):\n    def step(self, images):\n"
        "        if self.batches_seen == 2 and 'CUT' in os.environ:\n            raise KeyboardInterrupt\n"
        "        return super().step(images)\n"
    )

    def run(**environment: str) -> str:
        command = [sys.executable, "-m", "tta", *words(files), "method=tent", "method._target_=mine.Mine"]
        told = subprocess.run(
            [*command, "checkpoint.every=1"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path), **environment},
            capture_output=True,
            text=True,
        )
        assert told.returncode == (130 if environment else 0), told.stderr
        return told.stderr

    run(CUT="1")
    with (tmp_path / "tta" / "objectives" / "base.py").open("a") as file:
        file.write("# another line\n")
    told = run()
    assert_names(told, "checkpoint")
    assert " 20 " not in told  # images that a checkpoint would have known


def test_checkpoint__leaves_out_frozen_weights(
    tta_command: Command, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Tent.step

    def cut_off(self: Tent, images: torch.Tensor) -> torch.Tensor:
        if self.batches_seen == 2:
            raise KeyboardInterrupt
        return step(self, images)

    monkeypatch.setattr(Tent, "step", cut_off)
    with pytest.raises(SystemExit):
        tta_command(*words(files), "method=tent", "checkpoint.every=1")
    (checkpoint,) = (tmp_path / "runs").glob("*/checkpoint")
    assert checkpoint.stat().st_size < 0.2 * (files / "net.safetensors").stat().st_size


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Batches before each checkpoint, on a clock by which one takes a second to save."""
    saved: list[int] = []
    save = torch.save

    def counted(*arguments: Any, **options: Any) -> None:
        saved.append(WATCH.calls)
        save(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", counted)
        yield saved


def test_checkpoint__every_so_many_batches(own: Command, saved: list[int]) -> None:
    own("scenario=mixed", "checkpoint.every=4")
    assert saved == [4, 8]


@pytest.mark.parametrize(("seconds", "expected"), [(10, [3]), (20, [3, 6])])
def test_checkpoint__between_domains_that_are_worth_it(
    own: Command, saved: list[int], monkeypatch: pytest.MonkeyPatch, seconds: int, expected: list[int]
) -> None:
    """Saving, which takes a second here, is to cost 2 % of a run at most: a domain of three batches takes 30, or 60."""
    monkeypatch.setattr("time.perf_counter", lambda: float(seconds * WATCH.calls + len(saved)))
    own()
    assert saved == expected

"""Sweeps whose runs share their passes leave what each run leaves alone."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tta.runner
from helpers.sweep_files import differences, left, words
from tta.claims import claim, is_taken
from tta.loggers import Progress
from tta.metrics import Predictions
from tta.recorder import Recorder
from tta.replicas.lockstep import TURNS, Lockstep
from tta.replicas.passes import Replicas

Command = Callable[..., Any]
PASSES = ["blocks", "interleaved"]
OBJECTIVES = "em,cadf,dem,adadem,adadem_norm,adadem_mec,come,slr"


@pytest.fixture
def sweep(tta_command: Command, files: Path) -> Command:
    def call(*arguments: str) -> None:
        given = [word.partition("=")[0] + "=" for word in arguments]
        small = [word for word in words(files) if not word.startswith(tuple(given))]
        tta_command("-m", *small, *arguments)

    return call


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many replicas each joint pass had."""
    sizes: list[int] = []
    forward = Replicas.forward

    def counted(self: Replicas, images: Any) -> Any:
        sizes.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Replicas, "forward", counted)
    return sizes


def same(packed: Path, alone: Path) -> None:
    """The same files, with the same figures."""
    mine, theirs = left(packed), left(alone)
    assert mine.keys() == theirs.keys()
    assert not differences(mine, theirs)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("way", PASSES)
@pytest.mark.parametrize(
    "jobs",
    [
        ("method=source,bn_adapt", "seed=0,1,2"),
        ("method=tent", f"objective={OBJECTIVES}", "seed=0,1", "optimizer.lr=0.003"),
        (
            "method=eta",
            "method.margin=1",
            "method.diversity=1",
            "seed=0,1",
            "optimizer.lr=0.001,0.003",
            "stream.corruptions=fog,snow",
        ),
        ("method=tent,adadem", "seed=0,1", "optimizer=adam", "optimizer.lr=0.001", "scenario=continual"),
    ],
    ids=["no learning", "objectives", "eta", "adam"],
)
def test_every_run_leaves_the_files_that_it_leaves_alone(
    sweep: Command, tmp_path: Path, passes: list[int], jobs: tuple[str, ...], way: str, device: str
) -> None:
    common = ("stream.batch_size=16", f"device={device}")  # the last batch of a domain is smaller
    sweep(*jobs, *common, "runs_dir=alone")
    assert not passes
    sweep(*jobs, *common, "runs_dir=packed", "replicas=8", f"replica_pass={way}")
    assert max(passes) > 2
    same(tmp_path / "packed", tmp_path / "alone")


def test_runs_of_a_kind_are_packed_and_others_run_alone(
    sweep: Command, passes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep("method=tent,rotta,eta", "seed=0,1,2", "replicas=2", "replica_pass=blocks", "stream.limit=10")
    assert "9 job(s): 9 done" in capsys.readouterr().out
    # Tent and ETA learn alike; in the order of the jobs, Tent's first two, its third with ETA's first, ETA's others.
    assert Counter(passes) == {2: 3 * 3}


def test_a_run_that_diverges_fails_alone(
    sweep: Command, tmp_path: Path, passes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = ("method=tent", "seed=0", "optimizer.lr=0.001,1e30,0.002,0.003")
    with pytest.raises(SystemExit):
        sweep(*jobs, "runs_dir=alone")
    (reason,) = (line for line in capsys.readouterr().err.splitlines() if "diverged" in line)
    assert reason.startswith("tta: error: a logit is not finite at step ")
    with pytest.raises(SystemExit, match="1 of 4 jobs did not get done"):
        sweep(*jobs, "replicas=4", "replica_pass=interleaved", "runs_dir=packed")
    said = capsys.readouterr()
    assert "4 job(s): 3 done, 1 failed" in said.out
    assert said.err.count(reason) == 1
    assert passes == [4] * passes.count(4) + [3] * passes.count(3)
    assert len(passes) == 12
    assert passes.count(3) > 5
    same(tmp_path / "packed", tmp_path / "alone")


def test_runs_that_are_finished_are_skipped_and_twins_run_once(
    sweep: Command, passes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep("method=tent", "seed=1", "replicas=8")
    assert not passes  # by itself
    capsys.readouterr()
    sweep("method=tent,source", "seed=0,1,2", "optimizer.lr=0.00025", "replicas=8", "replica_pass=blocks")
    capsys.readouterr()
    passes.clear()
    # A learning rate means nothing to source: the same run twice.
    sweep("method=source", "seed=2,3,4", "optimizer.lr=0.1,0.2", "replicas=8", "replica_pass=blocks")
    assert "6 job(s): 4 skipped, 2 done" in capsys.readouterr().out
    assert set(passes) == {2}


def test_a_run_that_another_process_works_on_is_left_to_it(
    sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep("method=source", "seed=0,1,2", "runs_dir=known")
    (run,) = (tmp_path / "known").glob("*seed1*")
    other = ExitStack()
    other.enter_context(claim(tmp_path / "runs" / run.name))

    def looked_at(path: Path) -> bool:
        other.close()
        return is_taken(path)

    monkeypatch.setattr("tta.sweeps.is_taken", looked_at)
    sweep("method=source", "seed=0,1,2", "replicas=3", "replica_pass=blocks")
    said = capsys.readouterr()
    assert f"{run.name} is being run by process {os.getpid()}" in said.out
    assert "3 job(s): 3 done" in said.out
    same(tmp_path / "runs", tmp_path / "known")


def test_ctrl_c_ends_all_runs_of_a_pass_and_they_go_on_from_their_checkpoints(
    sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = ("method=tent,adadem", "seed=0,1", "checkpoint.every=1", "optimizer.lr=0.001")
    packed = ("replicas=4", "replica_pass=interleaved")
    sweep(*jobs, "runs_dir=alone")
    learn, calls = Replicas.learn, itertools.count()

    def interrupted(self: Replicas, logits: Any) -> Any:
        if next(calls) == 6:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        return learn(self, logits)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(Replicas, "learn", interrupted)
        with pytest.raises(SystemExit) as exit_:
            sweep(*jobs, *packed)
    assert exit_.value.code == 130
    said = capsys.readouterr()
    assert said.err.count("interrupted; its rows so far are in") == 4
    assert "4 job(s): 4 interrupted" in said.out
    assert not list(tmp_path.glob("runs/.claims/*.json"))  # nobody holds them
    sweep(*jobs, *packed)
    said = capsys.readouterr()
    assert said.err.count("goes on after 60 of 120 images") == 4
    same(tmp_path / "runs", tmp_path / "alone")


def test_the_fastest_way_is_found_while_the_runs_go_on(
    sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[int]
) -> None:
    jobs = ("method=tent", "seed=0,1,2,3", "stream.batch_size=4", "optimizer.lr=0.001")
    sweep(*jobs, "runs_dir=alone")
    for slow in ("_together", "_by_themselves"):
        passes.clear()
        own = getattr(Lockstep, slow)

        def slowly(self: Lockstep, *arguments: Any, own: Any = own) -> None:
            time.sleep(0.2)
            own(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Lockstep, slow, slowly)
            sweep(*jobs, "replicas=2", f"runs_dir={slow}")
        same(tmp_path / slow, tmp_path / "alone")
        # Three rounds are tried; what was found for the first two runs is at once taken for the others.
        assert len(passes) == (3 if slow == "_together" else 30 - 3 + 30)


@pytest.mark.parametrize("where", ["forward", "learn"])
def test_a_pass_that_has_no_memory_becomes_smaller(
    sweep: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    passes: list[int],
    capsys: pytest.CaptureFixture[str],
    where: str,
) -> None:
    jobs = ("method=tent", "seed=0,1,2,3,4", "optimizer.lr=0.001")
    sweep(*jobs, "runs_dir=alone")
    own = getattr(Replicas, where)

    def limited(self: Replicas, values: Any) -> Any:
        if len(values) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return own(self, values)

    monkeypatch.setattr(Replicas, where, limited)
    capsys.readouterr()
    if where == "learn":  # too late: some methods may have learnt from the batch
        with pytest.raises(SystemExit):
            sweep(*jobs, "replicas=5", "replica_pass=blocks")
        return
    sweep(*jobs, "replicas=5", "replica_pass=blocks")
    assert "no memory for so many runs in one pass: 3 at once" in capsys.readouterr().err
    assert max(passes) == 2
    same(tmp_path / "runs", tmp_path / "alone")


def test_a_network_that_cannot_be_shared_is_run_alone(
    sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = ("method=tent", "seed=0,1", "optimizer.lr=0.001")
    sweep(*jobs, "runs_dir=alone")
    monkeypatch.setattr(Replicas, "agree", lambda self, images: False)
    sweep(*jobs, "replicas=2", "replica_pass=blocks")
    said = capsys.readouterr().err
    assert said.count("tta: runs one after another, not in one pass (its layers mix the images of a batch)") == 1
    same(tmp_path / "runs", tmp_path / "alone")


@pytest.mark.parametrize(
    ("words_", "error"),
    [
        (("replicas=0",), "replicas must be a whole number of at least 1, got 0"),
        (("replicas=many",), "replicas must be a whole number of at least 1, got 'many'"),
        (("replica_pass=fast",), "replica_pass must be one of fastest, turns, blocks, interleaved; got 'fast'"),
    ],
)
def test_wrong_values_are_told(
    sweep: Command, words_: tuple[str, ...], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        sweep("method=source", "seed=0,1", *words_)
    assert capsys.readouterr().err.count(f"tta: error: {error}") == 2


def test_turns_are_runs_as_they_are_alone(sweep: Command, tmp_path: Path, passes: list[int]) -> None:
    jobs = ("method=tent", "seed=0,1,2", "optimizer.lr=0.001")
    sweep(*jobs)
    alone = left(tmp_path / "runs")
    (tmp_path / "runs").rename(tmp_path / "alone")
    sweep(*jobs, "replicas=3", "replica_pass=turns")
    assert not passes
    tables = [name for name in alone if name.endswith(".csv")]
    assert len(tables) == 9
    turns = left(tmp_path / "runs")
    assert all(turns[name] == alone[name] for name in tables)  # bit by bit


def test_automatic_is_as_many_as_suit_the_device(sweep: Command, passes: list[int]) -> None:
    sweep("method=source", "seed=0,1,2,3,4", "replicas=auto", "replica_pass=blocks", "stream.limit=10")
    assert set(passes) == {4}


def test_only_one_of_the_runs_shows_a_bar(sweep: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(Progress, "start", lambda self, name, *_: started.append(name))
    monkeypatch.setattr(Progress, "batch", lambda self, row: None)
    sweep("method=source", "seed=0,1,2", "replicas=3", "replica_pass=blocks", "stream.limit=10")
    assert len(started) == 1


def test_launchers_with_processes_of_their_own_say_that_they_do_not_pack(
    sweep: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep("method=source", "seed=0,1", "replicas=2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1")
    assert "replicas: jobs in processes of their own, as with this launcher, are run alone" in capsys.readouterr().err


def test_a_single_run_takes_no_notice(tta_command: Command, files: Path, passes: list[int], tmp_path: Path) -> None:
    tta_command(*words(files), "method=source", "replicas=8", "replica_pass=blocks")
    assert not passes
    assert len(list(tmp_path.rglob("summary.json"))) == 1
    assert sys.modules["tta.runner"] is tta.runner


def test_sixteen_runs_on_real_images_predict_as_they_do_alone(
    tta_command: Command, shared: Path, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CIFAR-10 under two corruptions, a trained network, batches of 25: 16 runs of three methods."""
    sets = [
        ("method=tent,adadem", "seed=0,1", "optimizer.lr=0.001,0.005"),
        ("method=eta", "method.margin=0.8", "method.diversity=0.9", "seed=0,1", "optimizer.lr=0.001,0.005"),
        ("method=source,bn_adapt", "seed=0,1"),
    ]
    common = (
        *("stream=cifar10_c", f"stream.root={shared / 'data' / 'cifar10-c-200'}", "stream.batch_size=25"),
        *("stream.corruptions=[fog,contrast]", "stream.limit=50", "model=resnet18_w16_cifar10", "device=cpu"),
        f"model.checkpoint={shared / 'models' / 'resnet18_w16_cifar10.safetensors'}",
    )
    predictions: list[tuple[str, int, Tensor]] = []
    add = Recorder.add

    def kept(self: Recorder, logits: Any, batch: Any, diagnostics: Any) -> None:
        labels = logits.predicted if isinstance(logits, Predictions) else logits.argmax(-1)
        predictions.append((self.directory.path.name, self.step + len(self.pending), labels))
        add(self, logits, batch, diagnostics)

    monkeypatch.setattr(Recorder, "add", kept)
    found = {}
    for way in (TURNS, *PASSES):
        predictions.clear()
        for jobs in sets:
            tta_command("-m", *jobs, *common, "replicas=16", f"replica_pass={way}", f"runs_dir={way}")
        found[way] = {(run, step): labels for run, step, labels in predictions}
    assert len({run for run, _ in found[TURNS]}) == 16
    assert set(passes) == {8, 4, 2}
    for way in PASSES:
        assert found[way].keys() == found[TURNS].keys()
        agreed = torch.cat([found[way][key] == labels for key, labels in found[TURNS].items()])
        assert agreed.double().mean() >= 0.999
        for run in {run for run, _ in found[way]}:
            mine, alone = (json.loads((tmp_path / w / run / "summary.json").read_text()) for w in (way, TURNS))
            assert abs(mine["online_accuracy"] - alone["online_accuracy"]) < 0.001
            # The trained network is there, and adapts; frozen it gets 38 % under these two.
            assert alone["online_accuracy"] > (0.35 if "_source_" in run else 0.75)

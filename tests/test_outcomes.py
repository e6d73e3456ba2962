"""Outcomes on real images: what a researcher would check before believing a number."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tta.compare import main as compare
from tta.methods import BNAdapt, Method, Source, Tent
from tta.models import Backbone
from tta.objectives import EM, AdaDEM, Objective
from tta.runner import Runner
from tta.runs.directory import RunDirectory
from tta.streams import Scenario, Stream
from tta.streams.datasets.cifar import cifar_c
from tta.utils.devices import choose_precision

CPU = torch.device("cpu")
LEARNS: dict[str, Objective | None] = {"bn_adapt": None, "em": EM(), "adadem": AdaDEM()}
COMPARISON = ("-m", "method=source,bn_adapt,tent,adadem", "runs_dir=runs", "device=cpu")


@pytest.fixture(scope="module")
def stream(shared: Path) -> Stream:
    return cifar_c(str(shared / "data" / "cifar10-c-200"), batch_size=50)


def run(method: Method, stream: Stream, folder: Path, scenario: Scenario | None = None) -> dict[str, Any]:
    """Summary of a run on the CPU."""
    return Runner(method, stream, scenario or Scenario(), 0, RunDirectory(folder)).run()


def test_bn_adapt__is_far_above_source(cifar_resnet18: Backbone, stream: Stream, tmp_path: Path) -> None:
    some = Stream(stream.domains[::3], 10, 50)
    source = run(Source(cifar_resnet18), some, tmp_path / "source")["accuracy"]
    adapted = run(BNAdapt(cifar_resnet18), some, tmp_path / "bn")["accuracy"]
    assert 0.55 < source < 0.68
    assert adapted > source + 0.10


def test_tent__at_tiny_and_huge_learning_rates(cifar_resnet18: Backbone, stream: Stream, tmp_path: Path) -> None:
    """A tiny learning rate gives bn_adapt; a huge one ruins the network."""
    few = Stream(stream.domains[:2], 10, 20, limit=100)
    bn = run(BNAdapt(cifar_resnet18), few, tmp_path / "bn")
    for objective in (EM(), AdaDEM()):
        tiny, huge = (
            run(Tent(cifar_resnet18, objective, functools.partial(torch.optim.SGD, lr=lr)), few, tmp_path / f"{lr}")
            for lr in (1e-7, 10.0)
        )
        assert tiny["accuracy"] == bn["accuracy"]
        assert [d["entropy"] for d in tiny["domains"]] == pytest.approx([d["entropy"] for d in bn["domains"]], rel=1e-4)
        assert huge["accuracy"] < bn["accuracy"] - 0.2


def test_single_domain__is_independent_of_others(cifar_resnet18: Backbone, stream: Stream, tmp_path: Path) -> None:
    """With reset=domain a domain's result is that of a run on this domain only; with reset=never it is not."""
    sgd = functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9)
    entropy = {}
    for name, domains in (("pair", stream.domains[4:6]), ("alone", stream.domains[5:6])):
        for reset in ("domain", "never"):
            few = Stream(domains, 10, 20, limit=100)
            summary = run(Tent(cifar_resnet18, EM(), sgd), few, tmp_path / name / reset, Scenario(reset))
            entropy[name, reset] = summary["domains"][-1]["entropy"]
    assert entropy["pair", "domain"] == entropy["alone", "domain"] == entropy["alone", "never"]
    assert abs(entropy["pair", "never"] - entropy["alone", "never"]) > 1e-3


# Half precision


def in_precisions(
    backbone: Backbone, stream: Stream, folder: Path, objective: Objective | None, half: str, device: str
) -> list[pd.DataFrame]:
    """Rows of the batches of a run in fp32, and of one in half precision."""
    there = torch.device(device)
    found = []
    for name in ("fp32", half):
        sgd = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)
        placed = copy.deepcopy(backbone).to(there)
        method = Tent(placed, objective, sgd) if objective else BNAdapt(placed)
        precision = choose_precision(name, there)
        Runner(method, stream, Scenario(), 0, RunDirectory(folder / name), (), there, precision).run()
        found.append(pd.read_csv(folder / name / "batches.csv"))
    return found


GPU = [
    pytest.param(half, "cuda", how, id=f"{half}-cuda-{how}", marks=pytest.mark.gpu)
    for half in ("bf16", "fp16")
    for how in LEARNS
]


@pytest.mark.parametrize(
    ("half", "device", "learns"), [pytest.param("bf16", "cpu", "adadem", marks=pytest.mark.slow), *GPU]
)
def test_half_precision__is_as_accurate_as_fp32(
    cifar_resnet18: Backbone, stream: Stream, tmp_path: Path, half: str, device: str, learns: str
) -> None:
    fp32, in_half = in_precisions(cifar_resnet18, stream, tmp_path, LEARNS[learns], half, device)
    assert (fp32.entropy != in_half.entropy).any()  # or autocast was not on
    assert abs(in_half.online_accuracy.iloc[-1] - fp32.online_accuracy.iloc[-1]) <= 0.002


@pytest.mark.parametrize(("half", "learns"), [pytest.param("fp16", "adadem", marks=pytest.mark.slow), ("bf16", "em")])
def test_half_precision__learns_on_a_cpu(
    cifar_resnet18: Backbone, stream: Stream, tmp_path: Path, half: str, learns: str
) -> None:
    """A CPU without units for it takes many times as long as in fp32, so there are few images."""
    few = Stream(stream.domains[:1], 10, 25, limit=100)
    fp32, in_half = in_precisions(cifar_resnet18, few, tmp_path, LEARNS[learns], half, "cpu")
    assert (fp32.entropy != in_half.entropy).any()
    assert (in_half.entropy - fp32.entropy).abs().max() < 0.02 * fp32.entropy.mean()


# The comparison of the demo, as `make run` does it: EM and AdaDEM gain over batch statistics, whoever is first.


def accuracies(runs: Path, images: int) -> dict[str, float]:
    """Accuracy of each method; every domain must have this many images."""
    found = {}
    for file in runs.rglob("summary.json"):
        summary = json.loads(file.read_text())
        assert {domain["n"] for domain in summary["domains"]} == {images}
        found[summary["choices"]["method"]] = summary["accuracy"]
    return found


def test_demo_comparison__learning_gains(
    tta_command: Callable[..., None], demo_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tent and AdaDEM at their default learning rates, on real digits."""
    monkeypatch.setenv("TTA_CACHE", str(demo_cache))
    tta_command(*COMPARISON, "stream.corruptions=[fog,contrast]", "stream.limit=2000")
    found = accuracies(tmp_path / "runs", 2000)
    assert found["bn_adapt"] > found["source"] + 0.15
    assert found["tent"] > found["bn_adapt"] + 0.005
    assert found["adadem"] > found["bn_adapt"] + 0.005


@pytest.mark.slow
def test_demo_comparison__of_make_run(
    tta_command: Callable[..., None], demo_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All images of three of its corruptions, then the table and the figure."""
    monkeypatch.setenv("TTA_CACHE", str(demo_cache))
    tta_command(*COMPARISON, "stream.corruptions=[gaussian_noise,fog,contrast]")
    found = accuracies(tmp_path / "runs", 3000)
    assert found["bn_adapt"] > found["source"] + 0.15
    assert found["tent"] > found["bn_adapt"] + 0.005
    assert found["adadem"] > found["bn_adapt"] + 0.005
    compare([str(tmp_path / "runs"), "--figures"])
    assert (tmp_path / "runs" / "comparison.md").is_file()
    assert (tmp_path / "runs" / "comparison.png").is_file()

"""Outcomes on real images: what a researcher would check before believing a number."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from tta.backbones import Backbone
from tta.devices import choose_precision
from tta.loggers import Logger
from tta.methods import BNAdapt, Method, Source, Tent
from tta.objectives import EM, AdaDEM, Objective
from tta.runner import Runner
from tta.runs import RunDirectory
from tta.streams import Scenario, Stream
from tta.streams.cifar import cifar_c

NO_LOGGERS: list[Logger] = []
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stream(shared: Path) -> Stream:
    return cifar_c(str(shared / "data" / "cifar10-c-200"), batch_size=50)


def accuracy(method: Method, stream: Stream, folder: Path, scenario: Scenario | None = None) -> float:
    with RunDirectory(folder) as directory:
        runner = Runner(method, stream, scenario or Scenario(), 0, directory, NO_LOGGERS, torch.device("cpu"))
        return runner.run()["accuracy"]


def test_batch_statistics_are_far_above_source(cifar_resnet18: Backbone, stream: Stream, tmp_path: Path) -> None:
    source = accuracy(Source(cifar_resnet18), stream, tmp_path / "source")
    adapted = accuracy(BNAdapt(cifar_resnet18), stream, tmp_path / "bn")
    assert 0.55 < source < 0.68
    assert adapted > source + 0.10


LEARNS = {"bn_adapt": None, "em": EM(), "adadem": AdaDEM()}
GPU = [pytest.param(f"{half} on cuda", how, marks=pytest.mark.gpu) for half in ("bf16", "fp16") for how in LEARNS]


@pytest.mark.parametrize(("half", "learns"), [("bf16 on cpu", "adadem"), *GPU])
def test_half_precision_is_as_accurate_as_fp32(
    cifar_resnet18: Backbone, stream: Stream, tmp_path: Path, half: str, learns: str
) -> None:
    fp32, in_half = in_precisions(cifar_resnet18, stream, tmp_path, LEARNS[learns], *half.split(" on "))
    assert (fp32.entropy != in_half.entropy).any()  # or autocast was not on
    assert abs(in_half.online_accuracy.iloc[-1] - fp32.online_accuracy.iloc[-1]) <= 0.002


@pytest.mark.parametrize(("half", "learns"), [("fp16", "adadem"), ("bf16", "em")])
def test_half_precision_learns_on_a_cpu_too(
    cifar_resnet18: Backbone, stream: Stream, tmp_path: Path, half: str, learns: str
) -> None:
    """A CPU that has no units for it takes many times as long as in fp32, so that there are few images."""
    few = Stream(stream.domains[:1], 10, 25, limit=100)
    fp32, in_half = in_precisions(cifar_resnet18, few, tmp_path, LEARNS[learns], half, "cpu")
    assert (fp32.entropy != in_half.entropy).any()
    assert (in_half.entropy - fp32.entropy).abs().max() < 0.02 * fp32.entropy.mean()


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
        with RunDirectory(folder / name) as directory:
            precision = choose_precision(name, there)
            Runner(method, stream, Scenario(), 0, directory, NO_LOGGERS, there, precision).run()
        found.append(pd.read_csv(folder / name / "batches.csv"))
    return found


def test_a_small_learning_rate_is_bn_adapt_and_a_huge_one_ruins(
    cifar_resnet18: Backbone, stream: Stream, tmp_path: Path
) -> None:
    few = Stream(stream.domains[:2], 10, 20)
    bn = accuracy(BNAdapt(cifar_resnet18), few, tmp_path / "bn")
    for objective in (EM(), AdaDEM()):
        small, huge = (
            accuracy(
                Tent(cifar_resnet18, objective, functools.partial(torch.optim.SGD, lr=lr)), few, tmp_path / f"{lr}"
            )
            for lr in (1e-7, 10.0)
        )
        assert small == bn
        assert huge < bn - 0.2


def test_single_domain_does_not_depend_on_the_other_domains_and_continual_does(
    cifar_resnet18: Backbone, stream: Stream, tmp_path: Path
) -> None:
    sgd = functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9)
    rows = {}
    for name, domains in (("pair", stream.domains[4:6]), ("alone", stream.domains[5:6])):
        for reset in ("domain", "never"):
            with RunDirectory(tmp_path / name / reset) as directory:
                part = Stream(domains, 10, 20)
                runner = Runner(
                    Tent(cifar_resnet18, EM(), sgd),
                    part,
                    Scenario(reset),
                    0,
                    directory,
                    NO_LOGGERS,
                    torch.device("cpu"),
                )
                rows[name, reset] = runner.run()["domains"][-1]["entropy"]
    assert rows["pair", "domain"] == rows["alone", "domain"] == rows["alone", "never"]
    assert rows["pair", "never"] != rows["alone", "never"]


def test_the_comparison_of_the_demo(demo_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What ``make run`` does, under three of its corruptions.

    EM and AdaDEM are above batch statistics here, whoever of the two is first.
    """
    import subprocess
    import sys

    tta = Path(sys.executable).parent / "tta"
    words = ["-m", "method=source,bn_adapt,tent,adadem", f"runs_dir={tmp_path}", "device=cpu"]
    words += ["stream.corruptions=[gaussian_noise,fog,contrast]"]
    subprocess.run([str(tta), *words], check=True, cwd=tmp_path)
    found = {}
    for file in tmp_path.rglob("summary.json"):
        summary = json.loads(file.read_text())
        found[summary["choices"]["method"]] = summary["accuracy"]
        assert [domain["n"] for domain in summary["domains"]] == [3000] * 3
    assert found["bn_adapt"] > found["source"] + 0.15
    assert found["tent"] > found["bn_adapt"] + 0.005
    assert found["adadem"] > found["bn_adapt"] + 0.005
    subprocess.run([str(tta.with_name("tta-compare")), str(tmp_path), "--figures"], check=True)
    assert (tmp_path / "comparison.md").is_file()
    assert (tmp_path / "comparison.png").is_file()

"""Scenarios from the command line to the files of a run, on a small data set."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.errors import assert_names, raises_naming
from helpers.numbered_images import domain
from tta.compare import find_runs
from tta.methods import Method
from tta.runner import Runner
from tta.runs.directory import RunDirectory
from tta.runs.fingerprint import fingerprint
from tta.streams import Scenario, Stream

NAMES = ("fog", "snow", "frost")


class Knowing(Method):
    """Predicts a class from the first pixel, as a table has it; counts its resets."""

    def __init__(self, answers: torch.Tensor) -> None:
        super().__init__(torch.nn.Identity())
        self.answers = answers
        self.resets = 0

    def step(self, images: torch.Tensor) -> torch.Tensor:
        pixel = (images[:, 0, 0, 0] * 255).round().long()
        return 5 * torch.nn.functional.one_hot(self.answers[pixel], 7).float()

    def reset(self) -> None:
        resets = self.resets
        super().reset()
        self.resets = resets + 1


def stream(batch_size: int = 8, broken: tuple[int, ...] = ()) -> Stream:
    """Image i of domain d is filled with i + 30 d, and of class i % 7."""
    domains = [domain(name, 20 + number, severity=3 + number) for number, name in enumerate(NAMES)]
    for number, each in enumerate(domains):
        each.load.shift = 30 * number  # type: ignore[attr-defined]
        each.load.broken = broken if number == 1 else ()  # type: ignore[attr-defined]
    return Stream(domains, 7, batch_size)


def run(folder: Path, scenario: Scenario, **options: Any) -> tuple[dict[str, Any], Knowing]:
    answers = torch.arange(30).repeat(3) % 7
    answers[30:40] += 1  # of snow the first ten are wrong
    answers[60::2] += 1  # of frost every other one
    method = Knowing(answers % 7)
    return Runner(method, stream(**options), scenario, 0, RunDirectory(folder)).run(), method


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return list(csv.DictReader(lines))


EXPECTED = {"fog": 1.0, "snow": 11 / 21, "frost": 0.5}


def test_mix__counts_images_to_their_domains(tmp_path: Path) -> None:
    summary, _ = run(tmp_path, Scenario("never", mix=True))
    single, _ = run(tmp_path / "single", Scenario())
    keys = ("domain", "severity", "visit", "n", "accuracy", "skipped")
    assert [[d[key] for key in keys] for d in summary["domains"]] == [
        [name, 3 + k, 1, 20 + k, pytest.approx(EXPECTED[name]), 0] for k, name in enumerate(NAMES)
    ]
    for mixed, alone in zip(summary["domains"], single["domains"], strict=True):
        assert mixed == pytest.approx({**alone, "seconds": mixed["seconds"]}, abs=1e-6)
    assert summary["accuracy"] == pytest.approx(sum(EXPECTED.values()) / 3)
    assert summary["online_accuracy"] == single["online_accuracy"] == pytest.approx((20 + 11 + 11) / 63)
    assert rows(tmp_path / "classes.csv") == rows(tmp_path / "single" / "classes.csv")
    batches = rows(tmp_path / "batches.csv")
    assert {(row["domain"], row["severity"], row["visit"]) for row in batches} == {("mixed", "", "1")}
    assert [int(row["n"]) for row in batches] == [8] * 7 + [7]
    assert float(batches[-1]["domain_accuracy"]) == pytest.approx(summary["online_accuracy"], abs=1e-6)


def test_mix__shares_its_time_by_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that ticks whenever it is read."""
    ticks = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    summary, _ = run(tmp_path, Scenario("never", mix=True))
    together = sum(d["seconds"] for d in summary["domains"])
    assert 0 < together <= summary["seconds"]
    assert [d["seconds"] for d in summary["domains"]] == pytest.approx([together * n / 63 for n in (20, 21, 22)])


def test_mix__counts_skipped_to_their_domains(tmp_path: Path) -> None:
    summary, _ = run(tmp_path, Scenario("never", mix=True), broken=(1, 12))
    assert [(d["n"], d["skipped"]) for d in summary["domains"]] == [(20, 0), (19, 2), (22, 0)]
    assert sorted(summary["skipped"]) == ["1", "12"]
    assert summary["domains"][1]["accuracy"] == pytest.approx(10 / 19)


def test_mix__raises_if_a_domain_is_unreadable(tmp_path: Path) -> None:
    with raises_naming(ValueError, "snow", "stream.root"):
        run(tmp_path, Scenario("never", mix=True), broken=tuple(range(21)))


@pytest.mark.parametrize(
    ("scenario", "resets"),
    [
        (Scenario("domain", rounds=2), 6),
        (Scenario("never", rounds=2), 0),
        (Scenario("batch", mix=True), 8),
    ],
)
def test_reset__follows_the_scenario(tmp_path: Path, scenario: Scenario, resets: int) -> None:
    assert run(tmp_path, scenario)[1].resets == resets


@pytest.mark.parametrize("mix", [False, True])
def test_rounds__have_visits_of_their_own(tmp_path: Path, mix: bool) -> None:
    summary, _ = run(tmp_path, Scenario("never", mix=mix, rounds=3))
    domains = rows(tmp_path / "domains.csv")
    assert [(row["domain"], row["visit"]) for row in domains] == [(name, str(v)) for v in (1, 2, 3) for name in NAMES]
    assert Counter((row["domain"], row["visit"]) for row in rows(tmp_path / "classes.csv")) == dict.fromkeys(
        ((name, str(v)) for v in (1, 2, 3) for name in NAMES), 7
    )
    steps = [(row["domain"], row["visit"]) for row in rows(tmp_path / "batches.csv")]
    assert sorted({visit for _, visit in steps}) == ["1", "2", "3"]
    assert {name for name, _ in steps} == ({"mixed"} if mix else set(NAMES))
    assert summary["images"] == 3 * 63


def test_mix__of_several_visits_has_no_visit(tmp_path: Path) -> None:
    twice = Stream([domain("fog"), domain("fog")], 7, 50)
    Runner(Knowing(torch.arange(30) % 7), twice, Scenario("never", mix=True), 0, RunDirectory(tmp_path)).run()
    (batch,) = rows(tmp_path / "batches.csv")
    assert (batch["domain"], batch["severity"], batch["visit"]) == ("fog", "5", "")
    assert [(row["visit"], row["accuracy"]) for row in rows(tmp_path / "domains.csv")] == [
        ("1", "1.000000"),
        ("2", "1.000000"),
    ]


def test_mix__raises_if_a_logit_is_not_finite(tmp_path: Path) -> None:
    class Broken(Knowing):
        def step(self, images: torch.Tensor) -> torch.Tensor:
            return super().step(images) / 0

    method = Broken(torch.zeros(90).long())
    with raises_naming(FloatingPointError, "logit", "step 0", "mixed"):
        Runner(method, stream(), Scenario("never", mix=True), 0, RunDirectory(tmp_path)).run()


# From the command line


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    np.save(root / "labels.npy", np.tile(np.arange(30) % 10, 5).astype(np.uint8))
    for name in NAMES:
        np.save(root / f"{name}.npy", rng.integers(0, 256, (150, 32, 32, 3), dtype=np.uint8))
    return root


@pytest.fixture
def tta(tta_command: Callable[..., None], data: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Call the program, in an empty folder; gives what it prints."""
    small = ["stream=cifar10_c", f"stream.root={data}", f"stream.corruptions=[{','.join(NAMES)}]", "device=cpu"]
    small += ["model=timm", "model.name=test_efficientnet", f"model.checkpoint={net(data)}", "model.num_classes=10"]

    def call(*words: str) -> str:
        tta_command(*words, *small)
        return capsys.readouterr().out

    return call


def net(folder: Path) -> Path:
    import timm
    from safetensors.torch import save_file

    file = folder / "net.safetensors"
    if not file.is_file():
        torch.manual_seed(0)
        save_file(timm.create_model("test_efficientnet", num_classes=10).state_dict(), str(file))
    return file


def test_scenario__every_yaml_runs_and_is_compared(tta: Callable[..., str], tmp_path: Path) -> None:
    scenarios = "episodic,mixed,recurring,gradual,label_shift,label_shift_sorted,label_shift_imbalance,long_tailed"
    said = tta("-m", "method=source", f"scenario=single_domain,continual,{scenarios},single_image")
    found = {run.summary["choices"]["scenario"]: run for run in find_runs([tmp_path / "runs"])}
    assert len(found) == len({run.benchmark for run in found.values()}) == 11
    recurring, gradual = (line for line in said.splitlines() if " visits" in line)
    assert_names(recurring, " 3 domain", " 30 visits", " 900 images")
    assert_names(gradual, " 15 domain", " 27 visits", " 810 images")
    severities = [d["severity"] for d in found["gradual"].summary["domains"]]
    assert severities == [1, 2, 3, 4, 5, 4, 3, 2, 1] * 3
    assert {row["n"] for row in rows(found["single_image"].path / "batches.csv")} == {"1"}
    assert found["long_tailed"].summary["images"] == 3 * sum(max(round(3 * 10 ** (-k / 9)), 1) for k in range(10))
    # A frozen model does not care for the order.
    accuracies = {name: found[name].summary["accuracy"] for name in found if name not in ("gradual", "long_tailed")}
    assert accuracies == pytest.approx(dict.fromkeys(accuracies, accuracies["single_domain"]))


def test_scenario__options_combine(tta: Callable[..., str], tmp_path: Path) -> None:
    words = [
        "scenario.order=dirichlet",
        "scenario.delta=0.1",
        "scenario.rounds=2",
        "scenario.reset=batch",
        "stream.batch_size=8",
    ]
    tta("method=bn_adapt", "scenario=mixed", *words)
    (found,) = find_runs([tmp_path / "runs"])
    assert len(found.summary["domains"]) == 6
    assert "reset=batch, order=dirichlet, delta=0.1, mix=true, rounds=2" in found.title
    with raises_naming(SystemExit, "scenario.order=dirichlet", "scenario.delta=<number>"):
        tta("scenario=mixed", "scenario.order=dirichlet")


def test_fingerprint__of_older_runs_is_unchanged() -> None:
    parts: dict[str, Any] = {"model": {}, "stream": {"severity": 5}, "method": {}, "seed": 0, "precision": "fp32"}
    before: dict[str, Any] = {
        **parts,
        "scenario": {"_target_": "tta.streams.Scenario", "reset": "never", "order": "shuffle"},
    }
    options: dict[str, Any] = {"delta": None, "imbalance_ratio": None, "mix": False, "rounds": 1, "long_tailed": None}
    options |= {"part": "all", "share": None, "share_seed": 0}
    now: dict[str, Any] = {**parts, "scenario": {**before["scenario"], **options}}
    assert fingerprint(now, "w", "d") == fingerprint(before, "w", "d") == "3476237c40"
    others: list[dict[str, Any]] = [
        {"delta": 0.1},
        {"imbalance_ratio": 5},
        {"mix": True},
        {"rounds": 2},
        {"long_tailed": 1},
        {"part": "rest"},
        {"share": 0.2},
        {"share_seed": 1},
    ]
    changed = {fingerprint({**now, "scenario": {**now["scenario"], **option}}, "w", "d") for option in others}
    assert len(changed - {fingerprint(before, "w", "d")}) == len(others)

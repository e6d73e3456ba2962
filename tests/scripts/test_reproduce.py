"""Studies that reproduce published tables: what they run, what they say of it, and the comparison at the end."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import OmegaConf

from helpers.errors import assert_names
from helpers.scripts import SCRIPTS, load_script
from helpers.sweep_files import make_files, words
from tta.compare.published import Published, read_published

reproduce = load_script("reproduce")
STUDIES: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(reproduce.STUDIES))  # type: ignore[assignment]
PARTS = [(study, name, part) for study, content in STUDIES.items() for name, part in content["parts"].items()]


def make(name: str, part: dict[str, Any], overrides: list[str], **variables: str) -> Any:
    return reproduce.build(name, part, overrides, Path("runs"), variables)


def labels(sweep: list[str], rates: bool) -> set[str]:
    """Labels of the rows that a sweep makes."""
    given = dict(word.split("=", 1) for word in sweep)
    found = set()
    for method, objective, lr in product(
        *(
            given.get(key, default).split(",")
            for key, default in (("method", ""), ("objective", "em"), ("optimizer.lr", "0"))
        )
    ):
        label = f"{method} + {objective}" if method in ("tent", "eta", "eata", "sar", "deyo") else method
        found.add(f"{label} (lr {float(lr):g})" if rates else label)
    return found


@pytest.fixture(scope="module")
def published() -> dict[str, Published]:
    """The published tables that studies are laid beside."""
    return {name: read_published(name) for name in {part["published"] for _, _, part in PARTS}}


@pytest.mark.slow
def test_studies__make_every_published_row(published: dict[str, Published]) -> None:
    for study, name, part in PARTS:
        rows = set(published[part["published"]].rows)
        sweeps = make(name, part, [], CLEAN="clean").sweeps
        assert rows <= set().union(*(labels(sweep, study == "table14") for sweep in sweeps)), (study, name)


@pytest.mark.slow
def test_studies__keep_to_the_published_protocol(published: dict[str, Published]) -> None:
    for study, name, part in PARTS:
        protocol = published[part["published"]].protocol
        sweeps = [
            [re.sub(r"^([\w.]+=[^,\[]+),.*", r"\1", word) for word in sweep]  # the first of several values
            for sweep in make(name, part, ["stream.root=x"], CLEAN="clean").sweeps
        ]
        configurations = list(reproduce.configurations(sweeps))
        assert len(configurations) >= len(sweeps) > 0
        for config in configurations:
            place = (study, name, config["method"]["_target_"])
            ours = {key: config["stream"][key] for key in ("batch_size", "severity")}
            ours |= {key: config["scenario"][key] for key in ("reset", "order")}
            assert ours == ours | {key: value for key, value in protocol.items() if key in ours}, place
            weights = protocol["weights"].removeprefix("robustbench:cifar10/corruptions/")
            assert config["model"]["name"] == weights, place
            if wanted := protocol.get("normalization"):
                assert {key: config["model"][key] for key in ("mean", "std")} == wanted, place
            if optimizer := config["method"].get("optimizer"):
                for key, value in protocol.get("options", {}).items():
                    assert optimizer[key.removeprefix("optimizer.")] == value, place


def test_studies__have_a_script_each() -> None:
    for study in STUDIES:
        file = SCRIPTS / f"reproduce_{study}.sh"
        assert f'/reproduce.py" {study} "$@"' in file.read_text()
        assert os.access(file, os.X_OK)


def test_options__replace_the_studys_own() -> None:
    ours = ["model=vit_b16", "model.mean=[0.5,0.5,0.5]", "stream=imagenet_c", "seed=1,2,3", "optimizer.lr=1,2"]
    assert reproduce.replaced(ours, ["model=timm", "+model.kwargs.a=1", "seed=1"]) == [
        *("stream=imagenet_c", "optimizer.lr=1,2", "model=timm", "+model.kwargs.a=1", "seed=1"),
    ]


def test_variables__missing_leave_a_sweep_out() -> None:
    part = {"published": "p", "common": "seed=1", "sweeps": ["method=eata method.fisher.root=$CLEAN", "method=tent"]}
    made = make("a", part, [])
    assert made.sweeps == [["seed=1", "method=tent"]]
    (line,) = made.left_out
    assert_names(line, "CLEAN", "method=eata")
    made = make("a", part, ["seed=2"], CLEAN="a b")
    assert made.sweeps[0] == ["method=eata", "method.fisher.root=a b", "seed=2"]
    assert not made.left_out


def test_configurations__one_for_each_combination() -> None:
    sweep = ["method=tent,bn_adapt", "objective=em,dem", "optimizer.lr=1e-3,0.1", "seed=1,2"]
    found = list(reproduce.configurations([sweep]))
    assert len(found) == 16
    tent = [config for config in found if config["method"]["_target_"].endswith("Tent")]
    assert {(config["method"]["optimizer"]["lr"], config["seed"]) for config in tent} == {
        *((0.001, 1), (0.001, 2), (0.1, 1), (0.1, 2)),
    }


def test_told__counts_runs_and_multiplies_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """``bn_adapt`` has neither objective nor rate: it is two of the ten runs."""
    sweep = "method=tent,bn_adapt objective=em,dem optimizer.lr=1e-3,0.1 seed=1,2"
    part = make("a", {"published": "p", "common": "", "sweeps": [sweep]}, [])
    monkeypatch.setattr(reproduce, "measured", lambda *_: (1000, 0.5, "a device"))
    monkeypatch.setattr(reproduce, "method_costs", lambda: {"tent": 3.0, "bnadapt": 1.0})
    *_, counted, estimated = reproduce.told(part)
    assert re.findall(r"\d+", counted) == ["10", "0"]
    seconds = 1000 * 0.5 * (8 * 3.0 + 2 * 1.0)
    assert_names(estimated, 10, 1000, "a device", reproduce.duration(seconds))


def test_duration__has_a_fitting_unit() -> None:
    told = {0.2: "1 s", 59: "59 s", 90: "1.5 min", 5400: "1.5 h", 216000: "2.5 days"}
    assert {seconds: reproduce.duration(seconds) for seconds in told} == told


def test_costs__are_those_of_the_benchmark() -> None:
    costs = reproduce.method_costs()
    assert costs.keys() >= {"source", "bnadapt", "tent", "sar", "cotta"}
    assert costs["source"] == pytest.approx(1, abs=0.1)


def test_study__runs_and_is_compared(
    call: Callable[..., None],
    tta_in_process: Callable[[ModuleType], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tta_in_process(reproduce)
    monkeypatch.setenv("LIMIT", "20")
    monkeypatch.setenv("COLUMNS", "300")
    make_files(tmp_path)
    small = [word for word in words(tmp_path) if not word.startswith("stream.corruptions=")]
    line = ["cifar10_c", tmp_path / "runs", *small, "stream.corruptions=[fog]", "--part", "standard"]
    call(reproduce, *line)
    said = capsys.readouterr().out
    assert [re.findall(r"\d+", text) for text in said.splitlines() if re.match(r" +4 runs,", text)] == [["4", "0"]]
    assert_names(said, "20 images", "cpu", "tent + adadem")  # what has no published figure is named
    (row,) = re.findall(r"^tent \+ em .*$", said, re.MULTILINE)
    mean, theirs, difference = float(row.split()[-4]), float(row.split()[-2]), float(row.split()[-1])
    assert theirs == 81.4
    assert difference == pytest.approx(mean - theirs, abs=0.01)
    # Each difference to the published protocol: the weights, the images of a domain, the batch size.
    assert_names(" ".join(said.split()), "test_efficientnet@", "20 (10000", "10 (200")
    with (tmp_path / "runs" / "standard" / "comparison-long.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4

    call(reproduce, *line, "--plan")
    last = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert re.findall(r"\d+", last) == ["4", "4"]


@pytest.mark.slow
def test_script__plans_a_study(tmp_path: Path) -> None:
    """From the shell, with a trial of a few batches in a process of its own."""
    make_files(tmp_path)
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", SCRIPTS / "reproduce_cifar10_c.sh", tmp_path / "runs", *words(tmp_path)]
    command += ["--part", "standard", "--plan"]
    environment = {**os.environ, "PATH": search, "LIMIT": "20"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert_names(done.stdout, "stream.limit=20", "60 images", "cpu")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("table12 runs", ["stream.root"]),
        ("table12 runs stream.root=x --part vgg", ["--part", "vgg", "resnet50", "vit_b16"]),
        ("table12 stream.root=x", ["KEY=VALUE"]),
        ("table99 runs", ["table99"]),
    ],
    ids=["no root", "part", "no folder", "study"],
)
def test_errors__name_what_is_wrong(
    line: str,
    named: list[str],
    call: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        call(reproduce, *shlex.split(line))
    assert_names(f"{error.value} {capsys.readouterr().err}", *named)
    assert not list(tmp_path.iterdir())

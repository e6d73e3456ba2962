from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers.sweep_files import make_files, words
from tta.compare.published import names, read_published

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
BIN = Path(sys.executable).parent


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reproduce", SCRIPTS / "reproduce.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reproduce"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


REPRODUCE = load()
PARTS = [
    pytest.param(study, name, part, id=f"{study}-{name}")
    for study, content in REPRODUCE._studies().items()
    for name, part in content["parts"].items()
]


def make(name: str, part: dict[str, Any], overrides: list[str], **variables: str) -> Any:
    return REPRODUCE.make_part(name, part, overrides, Path("runs"), variables)


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


@pytest.mark.parametrize(("study", "name", "part"), PARTS)
def test_a_study_makes_every_row_that_is_published(study: str, name: str, part: dict[str, Any]) -> None:
    assert part["published"] in names()
    rows = set(read_published(part["published"]).rows)
    sweeps = make(name, part, [], CLEAN="clean").sweeps
    assert rows <= set().union(*(labels(sweep, study == "table14") for sweep in sweeps))


@pytest.mark.parametrize(("study", "name", "part"), PARTS)
def test_a_study_keeps_to_the_published_protocol(study: str, name: str, part: dict[str, Any]) -> None:
    published = read_published(part["published"])
    sweeps = [[re.sub(r"^([\w.]+=[^,\[]+),.*", r"\1", word) for word in sweep]
              for sweep in make(name, part, ["stream.root=x"], CLEAN="clean").sweeps]  # fmt: skip
    configurations = list(REPRODUCE.configurations(sweeps))
    assert len(configurations) >= len(sweeps) > 0
    for config in configurations:
        ours = {
            "batch_size": config["stream"]["batch_size"],
            "severity": config["stream"]["severity"],
            "reset": config["scenario"]["reset"],
            "order": config["scenario"]["order"],
        }
        assert ours == ours | {key: value for key, value in published.protocol.items() if key in ours}
        weights = published.protocol["weights"].removeprefix("robustbench:cifar10/corruptions/")
        assert config["model"]["name"] == weights
        if wanted := published.protocol.get("normalization"):
            assert {key: config["model"][key] for key in ("mean", "std")} == wanted
        if optimizer := config["method"].get("optimizer"):
            for key, value in published.protocol.get("options", {}).items():
                assert optimizer[key.removeprefix("optimizer.")] == value


def test_every_study_has_a_script() -> None:
    studies = REPRODUCE._studies()
    assert studies
    for study in studies:
        file = SCRIPTS / f"reproduce_{study}.sh"
        assert f'/reproduce.py" {study} "$@"' in file.read_text()
        assert os.access(file, os.X_OK)


def test_options_take_the_place_of_the_studys_own() -> None:
    ours = ["model=vit_b16", "model.mean=[0.5,0.5,0.5]", "stream=imagenet_c", "seed=1,2,3", "optimizer.lr=1,2"]
    assert REPRODUCE.replaced(ours, ["model=timm", "+model.kwargs.a=1", "seed=1"]) == [
        "stream=imagenet_c", "optimizer.lr=1,2", "model=timm", "+model.kwargs.a=1", "seed=1",
    ]  # fmt: skip


def test_without_its_variable_a_sweep_is_left_out() -> None:
    part = {"published": "p", "common": "seed=1", "sweeps": ["method=eata method.fisher.root=$CLEAN", "method=tent"]}
    made = make("a", part, [])
    assert made.sweeps == [["seed=1", "method=tent"]]
    assert made.left_out == ["without CLEAN in the environment there is no method=eata"]
    made = make("a", part, ["seed=2"], CLEAN="a b")
    assert made.sweeps[0] == ["method=eata", "method.fisher.root=a b", "seed=2"]
    assert made.left_out == []


def test_every_combination_is_a_configuration_of_its_own() -> None:
    sweep = ["method=tent,bn_adapt", "objective=em,dem", "optimizer.lr=1e-3,0.1", "seed=1,2"]
    found = list(REPRODUCE.configurations([sweep]))
    assert len(found) == 16
    assert len({REPRODUCE._identity(config) for config in found}) == 8 + 2  # bn_adapt has neither objective nor rate
    tent = [config for config in found if config["method"]["_target_"].endswith("Tent")]
    assert {(config["method"]["optimizer"]["lr"], config["seed"]) for config in tent} == {
        (0.001, 1), (0.001, 2), (0.1, 1), (0.1, 2),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (59, "59 s"), (90, "1.5 min"), (5400, "1.5 h"), (216000, "2.5 days")]
)
def test_durations(seconds: float, text: str) -> None:
    assert REPRODUCE.duration(seconds) == text


def test_costs_are_those_of_the_benchmark() -> None:
    costs = REPRODUCE.method_costs()
    assert costs["source"] == pytest.approx(1, abs=0.1)
    assert costs["bnadapt"] < costs["tent"] < costs["sar"] < costs["cotta"]


def run(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "300", **variables}
    command = ["bash", str(SCRIPTS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_from_end_to_end(tmp_path: Path) -> None:
    make_files(tmp_path)
    where = [str(tmp_path / "runs"), *words(tmp_path), "--part", "standard"]
    done = run("reproduce_cifar10_c.sh", *where, LIMIT="20")
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert said.index("4 runs, 0 of them finished before") < said.index("online accuracy in per cent")
    assert re.search(
        r"4 runs of 60 images each, at \d+ images/s for source \(measured on cpu .*\): about \d+ s, one", said
    )
    (head,) = re.findall(r"^method .*$", said, re.MULTILINE)
    assert head.split()[-3:] == ["published", "Δ", "published"]
    (row,) = re.findall(r"^tent \+ em .*$", said, re.MULTILINE)
    mean, theirs, difference = float(row.split()[-5]), float(row.split()[-2]), float(row.split()[-1])
    assert theirs == 81.4
    assert difference == pytest.approx(mean - theirs, abs=0.01)
    assert "No published figure for tent + adadem" in said
    told = " ".join(said.split())
    assert (
        "not the protocol of README of Tent (CIFAR-10-C, single-domain), so that differences to it mean nothing" in told
    )
    for difference_ in (
        "weights test_efficientnet@",
        "images per domain 20 (10000 there)",
        "batch size 10 (200 there)",
    ):
        assert difference_ in told
    again = run("reproduce_cifar10_c.sh", *where, "--plan", LIMIT="20")
    assert again.stdout.rstrip().endswith("4 runs, 4 of them finished before")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("table12 runs", "reproduce: error: stream.root is needed"),
        ("table12 runs stream.root=nowhere", "nowhere"),
        ("table12 runs stream.root=x --part vgg", "--part: table12 has no part 'vgg'; it has resnet50, vit_b16"),
        ("table12 stream.root=x", "expected the folder for the runs, then options of tta as KEY=VALUE"),
        ("table99 runs", "invalid choice: 'table99'"),
    ],
)
def test_what_is_wrong_is_told(
    line: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *shlex.split(line)])
    with pytest.raises(SystemExit) as error:
        REPRODUCE.main()
    assert message in f"{error.value} {capsys.readouterr().err}"
    assert not list(tmp_path.iterdir())

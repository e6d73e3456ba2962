"""``tta-search`` as a user types it, in this process and in others."""

from __future__ import annotations

import copy
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from helpers.errors import assert_names, raises_naming
from helpers.sweep_files import make_files
from tta import cli
from tta.config import instantiate
from tta.search import cli as search_cli
from tta.search import prepare
from tta.search.space import Values
from tta.search.study import Study
from tta.search.trials import Evaluation
from tta.streams.arrays import ArrayImages

N = 50  # images per domain
REPOSITORY = Path(__file__).resolve().parents[2]
Command = Callable[..., str]

# A coarser grid than DEM*'s own: the objective is asked for every point of it, again and again.
GRID = [
    *(f"search.space.objective.tau.{option}" for option in ("low=0.5", "high=2.0", "step=0.5")),
    *(f"search.space.objective.alpha.{option}" for option in ("low=0.0", "high=2.0", "step=0.5")),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in the layout of CIFAR-10-C, and a small network with BatchNorm."""
    root = tmp_path_factory.mktemp("files")
    make_files(root, N, ("gaussian_noise", "fog"))
    return root


@pytest.fixture
def small(files: Path) -> list[str]:
    return [
        "stream=cifar10_c",
        f"stream.root={files}",
        "stream.corruptions=[gaussian_noise,fog]",
        "stream.batch_size=10",
        "model=timm",
        "model.name=test_efficientnet",
        f"model.checkpoint={files / 'net.safetensors'}",
        "optimizer.lr=0.5",
        "device=cpu",
        "search.prune=0",
    ]


@pytest.fixture
def alone(small: list[str]) -> list[str]:
    """The result alone is measured."""
    return [*small, *GRID, "~search.beside"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Call ``tta-search``, or another entry point, in an empty folder, and give what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*arguments: str, main: Callable[[], None] = search_cli.main) -> str:
        monkeypatch.setattr(sys, "argv", ["tta-search", *arguments])
        capsys.readouterr()
        main()
        return capsys.readouterr().out

    return call


def error(command: Command, *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        command(*arguments)
    return str(caught.value)


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tta.search", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, env=environment)


def only(paths: Any) -> Path:
    (path,) = paths
    return path


def finished(folder: Path) -> dict[Path, int]:
    """Finished runs, with the time at which each of them was."""
    return {file: file.stat().st_mtime_ns for file in folder.rglob("summary.json")}


def trials(folder: Path) -> list[dict[str, str]]:
    with only(folder.rglob("trials.csv")).open() as rows:
        return list(csv.DictReader(rows))


def summaries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in folder.rglob("summary.json")]


def test_dem_star__searched_measured_and_written(
    command: Command, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def accuracy(_: Evaluation, values: Values, report: object) -> float:
        """Best at other values than the first."""
        return 0.8 - 0.1 * abs(values["objective.tau"] - 0.7) - 0.1 * abs(values["objective.alpha"] - 0.6)

    monkeypatch.setattr(Evaluation, "__call__", accuracy)
    words = [*small, *GRID, "search.trials=6", "search.seeds=[0,1]", "~search.beside.adadem"]
    output = command(*words)
    study = only((tmp_path / "runs" / "search").iterdir())
    rows = trials(study)
    assert len(rows) == 6
    assert (rows[0]["objective.tau"], rows[0]["objective.alpha"]) == ("1.0", "1.0")
    lines = [line for line in output.splitlines() if line.startswith("trial ")]
    assert [line.split()[1] for line in lines] == [f"{number}/6" for number in range(1, 7)]
    assert_names(lines[0], "tau=1", "alpha=1", f"{100 * float(rows[0]['accuracy']):.2f} %")
    best = max(rows, key=lambda row: float(row["accuracy"]))
    tau, alpha = float(best["objective.tau"]), float(best["objective.alpha"])
    assert best is not rows[0]  # or this test says little

    written = OmegaConf.load(study / "configs" / "objective" / "dem_star.yaml")
    assert (written.objective.tau, written.objective.alpha) == (tau, alpha)
    assert written.uses_labels["keys"] == ["objective.tau", "objective.alpha"]
    assert written.uses_labels.study == study.name
    assert (written.uses_labels.share, written.uses_labels.share_seed, written.uses_labels.trials) == (0.2, 0, 6)

    kinds = {}
    for one in summaries(tmp_path / "runs"):
        scenario, part = one["config"]["scenario"], one["config"]["scenario"]["part"]
        objective = one["choices"]["objective"]
        kinds[part, objective, one["config"]["seed"]] = one
        assert scenario["share"] == (None if part == "all" else 0.2)
        assert [visit["n"] for visit in one["domains"]] == [{"rest": 40, "all": N}[part]] * 2
        assert (one["config"].get("uses_labels") == written.uses_labels) == (objective == "dem_star")
        assert one["config"]["method"]["optimizer"]["lr"] == 0.5
    assert set(kinds) == {(p, o, s) for p in ("rest", "all") for o in ("dem_star", "em") for s in (0, 1)}

    table = (study / "search.md").read_text()
    means = [100 * np.mean([kinds["rest", name, seed]["accuracy"] for seed in (0, 1)]) for name in ("dem_star", "em")]
    for name, mean in zip(("dem_star ‡", "em"), means, strict=True):
        assert re.search(rf"^\| {name} \| {mean:.2f} ±\d+\.\d\d \| .* \|$", table, re.MULTILINE)
    assert any(line.startswith("‡") and "labels" in line for line in table.splitlines())
    assert "`tta-search stream=cifar10_c" in table
    assert (study / "search.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (study / "search.svg").read_text()

    # The command that the configuration's own header gives, with what the search was given, is a run that is done.
    header = re.search(r"^#   tta (.*)$", (study / "configs/objective/dem_star.yaml").read_text(), re.MULTILINE)
    assert header is not None
    assert output.endswith(f"tta {header[1]}\n")  # and the search ends with it
    before = finished(tmp_path / "runs")
    command(*header[1].split(), *[word for word in small if not word.startswith("search.")], main=cli.main)
    # Again: nothing is done twice.
    assert "\ntrial " not in command(*words)
    assert before == finished(tmp_path / "runs")


def test_interrupted__goes_on_as_if_it_had_not_been(
    command: Command, alone: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*alone, "search.trials=4"]
    command(*words, "runs_dir=undisturbed")
    evaluate, begun = Evaluation.__call__, iter(range(100))

    def interrupt(self: Evaluation, *arguments: Any) -> float:
        if next(begun) == 2:
            raise KeyboardInterrupt
        return evaluate(self, *arguments)

    monkeypatch.setattr(Evaluation, "__call__", interrupt)
    with pytest.raises(SystemExit) as end:
        command(*words, "runs_dir=killed")
    assert end.value.code == 130
    output = command(*words, "runs_dir=killed")
    assert [line.split()[1] for line in output.splitlines() if line.startswith("trial ")] == ["3/4", "4/4"]
    assert_same_result("undisturbed", "killed")


@pytest.mark.slow
def test_killed__goes_on_as_if_it_had_not_been(command: Command, alone: list[str], tmp_path: Path) -> None:
    words = [*alone, "search.trials=12", "search.prune=0.5"]
    command(*words, "runs_dir=undisturbed")
    process = started(tmp_path, *words, "runs_dir=killed")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("trial 11/"):
            time.sleep(0.03)  # in the middle of the next one
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    command(*words, "runs_dir=killed")
    assert_same_result("undisturbed", "killed")


def assert_same_result(one: str, other: str) -> None:
    """Assert that two folders of runs have the same trials and the same result."""
    for name in ("trials.csv", "configs/objective/dem_star.yaml", "search.svg"):
        texts = [only(Path(folder).glob(f"search/*/{name}")).read_text().replace(folder, "") for folder in (one, other)]
        assert texts[0] == texts[1], name


@pytest.mark.slow
def test_workers__share_the_trials(command: Command, alone: list[str], tmp_path: Path) -> None:
    words = [*alone, "search.trials=6", "search.adapt_on=share"]
    other = started(tmp_path, *words)
    output = command(*words, "search.workers=2")
    _, errors = other.communicate(timeout=300)
    assert other.returncode == 0, errors
    rows = trials(tmp_path)
    assert len({(row["objective.tau"], row["objective.alpha"]) for row in rows}) == len(rows) == 6
    assert len(re.findall(r"^trial \d+/6 ", output, re.MULTILINE)) <= 6
    assert len(summaries(tmp_path / "runs")) == 2


def test_adapt_on_share__equals_a_run_on_the_share(command: Command, alone: list[str], tmp_path: Path) -> None:
    command(*alone, "search.trials=2", "search.adapt_on=share")
    configs = only((tmp_path / "runs" / "search").glob("*/configs"))
    words = [word for word in alone if "search." not in word]
    share = ("scenario.part=share", "scenario.share=0.2", "runs_dir=share", "objective=dem_star")
    command("--config-dir", str(configs), *words, *share, main=cli.main)
    (run,) = summaries(tmp_path / "share")
    assert run["accuracy"] == pytest.approx(run["config"]["uses_labels"]["accuracy"], abs=1e-6)


def test_space__any_number_can_be_searched(command: Command, small: list[str], tmp_path: Path) -> None:
    words = [*small, "search=lr", "method=eta", "search.name=tuned", "search.trials=3"]
    words += ["search.space.method.margin.low=0.9", "search.space.method.margin.high=2.0"]
    command(*words, "objective=adadem", "search.space.optimizer.lr.high=0.01")
    study = only((tmp_path / "runs" / "search").iterdir())
    written = OmegaConf.load(study / "configs" / "experiment" / "tuned.yaml")
    assert 1e-4 <= written.optimizer.lr <= 0.01
    assert 0.9 <= written.method.margin <= 2
    found = summaries(tmp_path / "runs")
    assert {one["choices"]["objective"] for one in found} == {"adadem"}
    marked = [one for one in found if one["config"].get("uses_labels")]
    assert len(marked) == 2
    assert len(found) == 4
    assert all(one["config"]["uses_labels"] == written.uses_labels for one in marked)
    for one in found:
        lr = written.optimizer.lr if one in marked else 0.5
        assert one["config"]["method"]["optimizer"]["lr"] == lr
    words = [word for word in small if not word.startswith(("search.", "optimizer.lr"))]
    folder = f"--config-dir={study / 'configs'}"
    before = finished(tmp_path / "runs")
    command(folder, *words, "method=eta", "objective=adadem", "experiment=tuned", main=cli.main)
    assert finished(tmp_path / "runs") == before


def test_space__rate_and_objective_in_own_folder(command: Command, small: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "own.yaml").write_text("defaults: [tent]\nsteps: 2\n")
    rate = [f"search.space.optimizer.lr.{key}" for key in ("low=0.1", "high=1.0", "log=true")]
    words = [word for word in small if word != "optimizer.lr=0.5"]
    command(
        "--config-dir", "mine", *words, *rate, "method=own", "~search.beside.em", "search.trials=2", "search.dir=here"
    )
    written = OmegaConf.load(tmp_path / "mine" / "experiment" / "dem_star.yaml")
    found = summaries(tmp_path / "runs")
    assert len(found) == 4
    for one in found:  # AdaDEM at the rate that was found, which it owes to labels too
        assert one["config"]["method"]["steps"] == 2
        assert one["config"]["method"]["optimizer"]["lr"] == written.optimizer.lr
        assert one["config"]["uses_labels"] == written.uses_labels
    assert {one["choices"]["objective"] for one in found} == {"dem", "adadem"}
    own = ("--config-dir", "mine", *words[:-1], "method=own", "experiment=dem_star")
    before = finished(tmp_path / "runs")
    command(*own, main=cli.main)
    assert finished(tmp_path / "runs") == before
    # What is another search's stays.
    said = error(command, "--config-dir", "mine", *words, *rate, "method=own", "search.trials=2", "search.dir=there")
    assert_names(said, "mine/experiment/dem_star.yaml", "search.name", "search.config_dir")


def test_diverged__is_given_up(command: Command, small: list[str], tmp_path: Path) -> None:
    words = [word for word in small if not word.startswith("optimizer.lr")]
    rate = [f"search.space.optimizer.lr.{key}" for key in ("low=0.001", "high=1e30", "log=true")]
    output = command(*words, "search=lr", *rate, "~search.beside", "search.trials=4", "scenario=continual")
    assert "diverged" in output
    assert {row["diverged"] for row in trials(tmp_path)} == {"0", "1"}


def test_objective__refused_values_are_not_tried(command: Command, small: list[str], tmp_path: Path) -> None:
    words = [
        *small,
        "~search.beside",
        "search.trials=2",
        "search.space.objective.tau.low=1.9",
        "search.space.objective.alpha.low=1.7",
    ]
    steps = ["search.space.objective.tau.high=2.0", "search.space.objective.alpha.high=2.0"]
    assert_names(error(command, *words, *steps), "search.space")
    command(*words, *steps, "objective.check=false")
    assert all(float(row["objective.tau"]) * float(row["objective.alpha"]) > 2 for row in trials(tmp_path))


def test_options__wrong_values_are_named() -> None:
    with hydra.initialize_config_dir(str(cli.CONFIGS), version_base="1.3"):
        config = hydra.compose("search")
    assert prepare.checked(config)["trials"] == 100
    wrong: list[tuple[str, Any, list[object]]] = [
        ("search.share", 0, [0]),
        ("search.share", 1, [1]),
        ("search.share", -0.2, [-0.2]),
        ("search.share_seed", -1, [-1]),
        ("search.trials", 0, [0]),
        ("search.workers", "x", ["'x'"]),
        ("search.prune", 2, [2]),
        ("search.adapt_on", "rest", ["all", "share", "'rest'"]),
        ("search.seeds", 3, [3]),
        ("search.seeds", [0, -1], [-1]),
        ("search.name", "a/b", ["'a/b'"]),
        ("scenario.part", "rest", ["search.share", "search.share_seed"]),
    ]
    for key, value, named in wrong:
        changed = copy.deepcopy(config)
        OmegaConf.update(changed, key, value)
        with raises_naming(ValueError, key, *named):
            prepare.checked(changed)


TUA = ["search.space.objective.tua.low=1", "search.space.objective.tua.high=2"]
SEVERITY = ["search.space.stream.severity.low=1", "search.space.stream.severity.high=5"]
OF_METHOD = ["search.space.method.objective.tau.low=1.0", "search.space.method.objective.tau.high=2.0"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["search.share=0.001"], ["scenario.share=0.001", N]),
        (["search.name=dem"], ["search.name=dem"]),
        (["search.trails=5"], ["search.trails", "search.trials"]),
        (TUA, ["objective.tua", "objective.tau"]),
        (["search.space.optimizer.lr.low=1"], ["search.space.optimizer.lr", "low", "high", "step", "log"]),
        (SEVERITY, ["search.space", "stream.severity", "method, objective, optimizer"]),
        (OF_METHOD, ["search.space", "method.objective", "${objective}"]),
        (["method=source"], ["search.space", "objective.tau", "method=source"]),
        (["search=none"], ["search/none"]),
        (["stream.batch_size=1"], ["Tent", "2"]),
        (["stream.root=nowhere"], ["nowhere"]),
        (["model.num_classes=7"], ["7"]),
    ],
)
def test_errors__are_named_and_leave_nothing(
    command: Command, small: list[str], tmp_path: Path, words: list[str], named: list[object]
) -> None:
    assert_names(error(command, *small, *words), "tta-search", *named)
    assert not list(tmp_path.rglob("*.db"))


def test_stream__without_labels_is_refused(command: Command, small: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine" / "stream").mkdir(parents=True)
    (tmp_path / "mine" / "stream" / "plain.yaml").write_text("_target_: unlabelled_stream.make\nbatch_size: 10\n")
    (tmp_path / "unlabelled_stream.py").write_text(
        "import torch\n"
        "from tta.streams import Domain, Stream\n"
        "from tta.streams import LoadedImages\n"
        "def make(batch_size):\n"
        "    load = lambda index: LoadedImages(torch.zeros(len(index), 3, 32, 32, dtype=torch.uint8), index)\n"
        "    return Stream([Domain('photos', 0, torch.full((60,), -1), load)], 10, batch_size)\n"
    )
    words = [word for word in small if not word.startswith("stream")]
    said = error(command, "--config-dir", "mine", *words, "stream=plain")
    assert_names(said, "tta-search", "photos-0")


def test_dir__of_another_search_or_broken_is_named(command: Command, alone: list[str], tmp_path: Path) -> None:
    words = [*alone, "search.trials=1", "search.dir=here"]
    command(*words)
    said = error(command, *words, "scenario=continual", "search.share=0.5")
    assert_names(said, "here", "scenario.reset", "domain", "never", "search.share", "0.2", "0.5", "search.dir")
    (tmp_path / "here" / "study.db").write_bytes(b"x" * 4096)
    assert_names(error(command, *words), "here/study.db")


def test_fingerprint__any_option_makes_another_search(
    command: Command, alone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What determines the trials is part of the name of the search's folder; what does not is none."""
    folders: list[Path] = []
    monkeypatch.setattr(search_cli, "run", lambda config: folders.append(prepare.prepare(config).folder))
    same: tuple[list[str], ...] = ([], ["search.trials=2"], ["search.seeds=[0,1]"])
    other = (["optimizer.momentum=0.5"], ["search.share_seed=1"], ["objective.tau=0.5"], ["search.adapt_on=share"])
    others = (*other, ["search.space.objective.tau.high=1.0"])
    for change in (*same, *others):
        command(*alone, *change)
    assert len(set(folders[: len(same)])) == 1
    assert len(set(folders)) == 1 + len(others)


def test_prepare__model_and_images_are_loaded_once(
    command: Command, alone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    read_before: list[int] = []
    build, read, take = instantiate.build, ArrayImages.__call__, Study.take

    def noted(config: Any, group: str, kind: type, **kwargs: Any) -> Any:
        made.append(config[group]._target_)
        return build(config, group, kind, **kwargs)

    def noted_read(self: ArrayImages, index: torch.Tensor) -> Any:
        made.append("images")
        return read(self, index)

    def noted_take(self: Study) -> Any:
        read_before.append(made.count("images"))
        return take(self)

    monkeypatch.setattr(prepare, "build", noted)
    monkeypatch.setattr(ArrayImages, "__call__", noted_read)
    monkeypatch.setattr(Study, "take", noted_take)
    command(*alone, "search.trials=4")
    assert made.count("tta.models.timm_backbone") == 1
    assert made.count("tta.methods.Tent") == 5  # one more to learn what data it needs
    assert read_before[0] < read_before[1] == read_before[-1]


def test_help__names_every_option(command: Command) -> None:
    output = command("--help")
    options = OmegaConf.load(cli.CONFIGS / "search.yaml").search
    for key in (*options, "space", "name"):
        assert f"search.{key}" in output

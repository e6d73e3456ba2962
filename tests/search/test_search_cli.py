"""``tta-search`` as a user types it, in this process and in others."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from helpers.forks import forked
from helpers.sweep_files import make_files
from tta import cli
from tta.search import cli as search_cli
from tta.search.study import Study

N = 60  # images per domain
Command = Callable[..., str]


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
        "stream.batch_size=6",
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
    return [*small, "~search.beside"]


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
    pipe = subprocess.PIPE
    return forked(search_cli.main, "tta-search", *arguments, cwd=folder, stdout=pipe, stderr=pipe)


def only(paths: Any) -> Path:
    (path,) = paths
    return path


def trials(folder: Path) -> list[dict[str, str]]:
    with only(folder.rglob("trials.csv")).open() as rows:
        return list(csv.DictReader(rows))


def summaries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in folder.rglob("summary.json")]


def test_dem_star_is_searched_measured_and_written(command: Command, small: list[str], tmp_path: Path) -> None:
    output = command(*small, "search.trials=14", "search.seeds=[0,1]")
    study = only((tmp_path / "runs" / "search").iterdir())
    rows = trials(study)
    assert len(rows) == 14
    assert (rows[0]["objective.tau"], rows[0]["objective.alpha"]) == ("1.0", "1.0")
    lines = [line for line in output.splitlines() if line.startswith("trial ")]
    assert len(lines) == 14
    assert re.fullmatch(r"trial 1/14 tau=1 alpha=1: \d+\.\d\d %, best so far", lines[0])
    best = max(rows, key=lambda row: float(row["accuracy"]))
    tau, alpha = float(best["objective.tau"]), float(best["objective.alpha"])
    assert float(best["accuracy"]) > float(rows[0]["accuracy"])  # or this test says little

    written = OmegaConf.load(study / "configs" / "objective" / "dem_star.yaml")
    assert (written.objective.tau, written.objective.alpha) == (tau, alpha)
    assert written.uses_labels["keys"] == ["objective.tau", "objective.alpha"]
    assert written.uses_labels.study == study.name
    assert (written.uses_labels.share, written.uses_labels.share_seed, written.uses_labels.trials) == (0.2, 0, 14)

    found = summaries(tmp_path / "runs")
    kinds = {}
    for one in found:
        scenario, part = one["config"]["scenario"], one["config"]["scenario"]["part"]
        objective = one["choices"]["objective"]
        kinds[part, objective, one["config"]["seed"]] = one
        assert scenario["share"] == (None if part == "all" else 0.2)
        assert [visit["n"] for visit in one["domains"]] == [{"rest": 48, "all": 60}[part]] * 2
        assert (one["config"].get("uses_labels") == written.uses_labels) == (objective == "dem_star")
        assert one["config"]["method"]["optimizer"]["lr"] == 0.5
    assert set(kinds) == {(p, o, s) for p in ("rest", "all") for o in ("dem_star", "em", "adadem") for s in (0, 1)}

    table = (study / "search.md").read_text()
    means = [100 * np.mean([kinds["rest", name, seed]["accuracy"] for seed in (0, 1)]) for name in ("dem_star", "em")]
    for name, mean in zip(("dem_star ‡", "em"), means, strict=True):
        assert re.search(rf"^\| {name} \| {mean:.2f} ±\d+\.\d\d \| .* \|$", table, re.MULTILINE)
    assert "‡ chosen with labels of the share: an upper bound, not a fair method." in table
    assert "`tta-search stream=cifar10_c" in table
    assert (study / "search.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (study / "search.svg").read_text()

    # The command that the configuration's own header gives, with what the search was given.
    header = re.search(r"^#   tta (.*)$", (study / "configs/objective/dem_star.yaml").read_text(), re.MULTILINE)
    assert header is not None
    assert output.endswith(f"to use it: tta {header[1]}\n")  # and the search ends with it
    words = [word for word in small if not word.startswith("search.")]
    assert "finished already" in command(*header[1].split(), *words, main=cli.main)
    # Again: nothing is done twice.
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("summary.json")}
    output = command(*small, "search.trials=14", "search.seeds=[0,1]")
    assert "14 trials, 14 of them done" in output
    assert "\ntrial " not in output
    assert output.count("finished already") == 12
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("summary.json")}


def test_a_killed_search_goes_on_as_if_it_had_not_been(command: Command, alone: list[str], tmp_path: Path) -> None:
    words = [*alone, "search.trials=14", "search.prune=0.5"]
    command(*words, "runs_dir=undisturbed")
    for kill_at in (2, 11):
        process = started(tmp_path, *words, "runs_dir=killed")
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(f"trial {kill_at}/"):
                time.sleep(0.03)  # in the middle of the next one
                break
        process.send_signal(signal.SIGKILL)
        process.communicate()
    command(*words, "runs_dir=killed")
    for name in ("trials.csv", "configs/objective/dem_star.yaml", "search.svg"):
        one, other = (only(Path(folder).glob(f"search/*/{name}")).read_text() for folder in ("undisturbed", "killed"))
        assert one.replace("undisturbed", "") == other.replace("killed", "")


def test_workers_share_the_trials(command: Command, alone: list[str], tmp_path: Path) -> None:
    words = [*alone, "search.trials=13", "search.adapt_on=share"]
    other = started(tmp_path, *words)
    output = command(*words, "search.workers=2")
    _, errors = other.communicate(timeout=300)
    assert other.returncode == 0, errors
    rows = trials(tmp_path)
    assert len({(row["objective.tau"], row["objective.alpha"]) for row in rows}) == len(rows) == 13
    assert len(re.findall(r"^trial \d+/13 ", output, re.MULTILINE)) <= 13
    assert len(summaries(tmp_path / "runs")) == 2
    # Where a trial has the share alone for its stream, an ordinary run on the share gives what the trial gave.
    configs = only((tmp_path / "runs" / "search").glob("*/configs"))
    words = [word for word in alone if "search." not in word]
    share = ("scenario.part=share", "scenario.share=0.2", "runs_dir=share", "objective=dem_star")
    command("--config-dir", str(configs), *words, *share, main=cli.main)
    (run,) = summaries(tmp_path / "share")
    assert run["accuracy"] == pytest.approx(run["config"]["uses_labels"]["accuracy"], abs=1e-6)


def test_any_number_can_be_searched(command: Command, small: list[str], tmp_path: Path) -> None:
    words = [*small, "search=lr", "method=eta", "search.name=tuned", "search.trials=12"]
    words += ["search.space.method.margin.low=0.9", "search.space.method.margin.high=2.0"]
    output = command(*words, "objective=adadem", "search.space.optimizer.lr.high=0.01")
    study = only((tmp_path / "runs" / "search").iterdir())
    written = OmegaConf.load(study / "configs" / "experiment" / "tuned.yaml")
    assert 1e-4 <= written.optimizer.lr <= 0.01
    assert 0.9 <= written.method.margin <= 2
    assert "trial 12/12 lr=" in output
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
    output = command(folder, *words, "method=eta", "objective=adadem", "experiment=tuned", main=cli.main)
    assert "finished already" in output


def test_rate_and_objective_together_and_the_folder_of_ones_own(
    command: Command, small: list[str], tmp_path: Path
) -> None:
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "own.yaml").write_text("defaults: [tent]\nsteps: 2\n")
    rate = [f"search.space.optimizer.lr.{key}" for key in ("low=0.1", "high=1.0", "log=true")]
    words = [word for word in small if word != "optimizer.lr=0.5"]
    command("--config-dir", "mine", *words, *rate, "method=own", "search.trials=11", "search.dir=here")
    written = OmegaConf.load(tmp_path / "mine" / "experiment" / "dem_star.yaml")
    found = summaries(tmp_path / "runs")
    assert len(found) == 6
    for one in found:  # EM and AdaDEM at the rate that was found, which is owed to labels too
        assert one["config"]["method"]["steps"] == 2
        assert one["config"]["method"]["optimizer"]["lr"] == written.optimizer.lr
        assert one["config"]["uses_labels"] == written.uses_labels
    assert {one["choices"]["objective"] for one in found} == {"dem", "em", "adadem"}
    own = ("--config-dir", "mine", *words[:-1], "method=own", "experiment=dem_star")
    assert "finished already" in command(*own, main=cli.main)
    # What is another search's stays.
    said = error(command, "--config-dir", "mine", *words, *rate, "method=own", "search.trials=11", "search.dir=there")
    assert "mine/experiment/dem_star.yaml is not of this search: choose another search.name or search.conf" in said


def test_what_diverges_is_given_up(command: Command, alone: list[str], tmp_path: Path) -> None:
    words = [word for word in alone if not word.startswith("optimizer.lr")]
    rate = [f"search.space.optimizer.lr.{key}" for key in ("low=0.001", "high=1e30", "log=true")]
    output = command(*words, "search=lr", *rate, "search.trials=11", "scenario=continual")
    assert ": diverged" in output
    assert {row["diverged"] for row in trials(tmp_path)} == {"0", "1"}


def test_what_the_objective_refuses_is_not_tried_unless_it_is_told_to(
    command: Command, alone: list[str], tmp_path: Path
) -> None:
    words = [*alone, "search.trials=2", "search.space.objective.tau.low=1.9", "search.space.objective.alpha.low=1.7"]
    steps = ["search.space.objective.tau.high=2.0", "search.space.objective.alpha.high=2.0"]
    message = "search.space: no values in these ranges go together; see the objective's own limits"
    assert message in error(command, *words, *steps)
    command(*words, *steps, "objective.check=false")
    assert all(float(row["objective.tau"]) * float(row["objective.alpha"]) > 2 for row in trials(tmp_path))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search.share=0"], "search.share must be a number above 0 and below 1, got 0"),
        (["search.share=1"], "search.share must be a number above 0 and below 1, got 1"),
        (["search.share=-0.2"], "search.share must be a number above 0 and below 1, got -0.2"),
        (["search.share=0.001"], "scenario.share=0.001 of 60 images is 0 of them, but the share and the rest need one"),
        (["search.share_seed=-1"], "search.share_seed must be a whole number of at least 0, got -1"),
        (["search.trials=0"], "search.trials must be a whole number of at least 1, got 0"),
        (["search.workers=x"], "search.workers must be a whole number of at least 1, got 'x'"),
        (["search.prune=2"], "search.prune must be a number from 0 to 1, got 2"),
        (["search.adapt_on=rest"], "search.adapt_on must be one of all, share; got 'rest'"),
        (["search.seeds=3"], "search.seeds must be a list of seeds, e.g. [0,1,2]; got 3"),
        (["search.seeds=[0,-1]"], "each of search.seeds must be a whole number of at least 0, got -1"),
        (["search.name=a/b"], "search.name must be letters, digits and _, as in dem_star; got 'a/b'"),
        (["search.name=dem"], "search.name=dem is the name of an objective that is there already: choose another"),
        (["search.trails=5"], "there is no key 'search.trails' in this configuration; did you mean search.trials"),
        (["scenario.part=rest"], "tta-search sets scenario.part itself: give search.share and search.share_seed"),
        (
            ["search.space.objective.tua.low=1", "search.space.objective.tua.high=2"],
            "there is no key 'objective.tua' with a value in this configuration; did you mean objective.tau",
        ),
        (["search.space.objective.tau.low=2.0"], "search.space.objective.tau: low=2.0 must be less than high=2.0"),
        (["search.space.objective.tau.step=0.7"], "steps of 0.7 do not lead from 0.1 to 2.0"),
        (["search.space.optimizer.lr.low=1"], "search.space.optimizer.lr needs low and high, and may have step or log"),
        (
            ["search.space.stream.severity.low=1", "search.space.stream.severity.high=5"],
            "search.space can hold numbers of method, objective, optimizer; stream.severity is none of them",
        ),
        (
            ["search.space.method.objective.tau.low=1.0", "search.space.method.objective.tau.high=2.0"],
            "search.space: method.objective is only ${objective} here: give the range of that instead of method.obj",
        ),
        (["objective=em"], "there is no key 'objective.tau' with a value in this configuration"),
        (["method=source"], "search.space: objective.tau changes nothing in method=source"),
        (["search=none"], "Could not find 'search/none'"),
        (["stream.batch_size=1"], "Tent needs at least 2 images in every batch"),
        (["stream.root=nowhere"], "nowhere"),
        (["model.num_classes=7"], "7"),
    ],
)
def test_errors_are_told_and_leave_nothing(
    command: Command, small: list[str], tmp_path: Path, words: list[str], message: str
) -> None:
    said = error(command, *small, *words)
    assert said.startswith("tta-search: error: ")
    assert message in said
    assert not list(tmp_path.rglob("*.db"))


def test_a_stream_without_labels_is_told(command: Command, small: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine" / "stream").mkdir(parents=True)
    (tmp_path / "mine" / "stream" / "plain.yaml").write_text("_target_: unlabelled_stream.make\nbatch_size: 6\n")
    (tmp_path / "unlabelled_stream.py").write_text(
        "import torch\n"
        "from tta.streams import Domain, Stream\n"
        "from tta.streams.base import Loaded\n"
        "def make(batch_size):\n"
        "    load = lambda index: Loaded(torch.zeros(len(index), 3, 32, 32, dtype=torch.uint8), index)\n"
        "    return Stream([Domain('photos', 0, torch.full((60,), -1), load)], 10, batch_size)\n"
    )
    words = [word for word in small if not word.startswith("stream")]
    said = error(command, "--config-dir", "mine", *words, "stream=plain")
    assert "tta-search chooses with labels, but photos-0 has images without: choose another stream" in said


def test_another_search_in_the_same_place_and_a_broken_one_are_told(
    command: Command, alone: list[str], tmp_path: Path
) -> None:
    command(*alone, "search.trials=1", "search.dir=here")
    said = error(command, *alone, "search.trials=1", "search.dir=here", "scenario=continual", "search.share=0.5")
    assert 'here holds a search of another configuration: scenario.reset is "domain" there and "never" here; ' in said
    assert "search.share is 0.2 there and 0.5 here. Choose another search.dir, or delete that folder" in said
    (tmp_path / "here" / "study.db").write_bytes(b"x" * 4096)
    said = error(command, *alone, "search.trials=1", "search.dir=here")
    assert "here/study.db cannot be used (file is not a database): if it is broken, delete it to begin anew" in said


def test_model_and_images_are_loaded_once(command: Command, alone: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from tta.search import prepare
    from tta.streams.cifar import ArrayImages

    made: list[str] = []
    read_before: list[int] = []
    make_part, read, take = prepare.make_part, ArrayImages.__call__, Study.take

    def noted(config: Any, group: str, kind: type, **kwargs: Any) -> Any:
        made.append(config[group]._target_)
        return make_part(config, group, kind, **kwargs)

    def noted_read(self: ArrayImages, index: torch.Tensor) -> Any:
        made.append("images")
        return read(self, index)

    def noted_take(self: Study) -> Any:
        read_before.append(made.count("images"))
        return take(self)

    monkeypatch.setattr(prepare, "make_part", noted)
    monkeypatch.setattr(ArrayImages, "__call__", noted_read)
    monkeypatch.setattr(Study, "take", noted_take)
    command(*alone, "search.trials=4")
    assert made.count("tta.backbones.timm_backbone") == 1
    assert made.count("tta.methods.Tent") == 5  # one more to learn what data it needs
    assert read_before[0] < read_before[1] == read_before[-1]


def test_help_names_every_option(command: Command) -> None:
    output = command("--help")
    options = OmegaConf.load(cli.CONFIGS / "search.yaml").search
    for key in (*options, "space", "name"):
        assert f"search.{key}" in output

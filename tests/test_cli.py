"""The command line, run in this process as a user would type it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from helpers.compositions import composed
from helpers.errors import assert_names, raises_naming
from helpers.own_parts import WATCH, Watching, own_words
from helpers.small_tree import N as TREE_IMAGES
from helpers.small_tree import tree
from helpers.sweep_files import make_files, rows
from tta.cli import CONFIGS
from tta.methods import Method

N = 20  # images per domain
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set in the layout of CIFAR-10-C, and a checkpoint of a small network with BatchNorm."""
    root = tmp_path_factory.mktemp("files")
    make_files(root, N, ("gaussian_noise", "fog", "snow"))
    return root


@pytest.fixture
def small(files: Path) -> list[str]:
    return [
        "stream=cifar10_c",
        f"stream.root={files}",
        "stream.corruptions=[gaussian_noise,fog]",
        "stream.batch_size=8",
        "model=timm",
        "model.name=test_efficientnet",
        f"model.checkpoint={files / 'net.safetensors'}",
        "device=cpu",
    ]


def only_run(folder: Path) -> Path:
    (summary,) = folder.rglob("summary.json")
    return summary.parent


# What a run leaves


def test_run__leaves_files_whose_figures_agree(tta_command: Command, small: list[str], tmp_path: Path) -> None:
    tta_command(*small, "method=adadem", "seed=3")
    run = only_run(tmp_path / "runs")
    batches, domains = rows(run / "batches.csv"), rows(run / "domains.csv")
    summary = json.loads((run / "summary.json").read_text())
    assert [row["n"] for row in batches] == ["8", "8", "4"] * 2
    assert [row["used"] for row in batches] == [row["n"] for row in batches]
    assert [row["step"] for row in batches] == list("012345")
    assert [row["domain"] for row in batches] == ["gaussian_noise"] * 3 + ["fog"] * 3
    correct = [float(row["batch_accuracy"]) * int(row["n"]) for row in batches]
    assert float(batches[1]["domain_accuracy"]) == pytest.approx(sum(correct[:2]) / 16, abs=1e-5)
    assert float(batches[3]["domain_accuracy"]) == pytest.approx(correct[3] / 8, abs=1e-5)
    assert float(batches[-1]["online_accuracy"]) == pytest.approx(sum(correct) / 40, abs=1e-5)
    assert float(domains[1]["accuracy"]) == pytest.approx(sum(correct[3:]) / 20, abs=1e-5)
    assert summary["accuracy"] == pytest.approx(np.mean([float(row["accuracy"]) for row in domains]), abs=1e-5)
    assert summary["online_accuracy"] == pytest.approx(sum(correct) / 40)
    assert summary["images"] == 40
    assert [domain["n"] for domain in summary["domains"]] == [20, 20]
    assert summary["weights"].startswith("test_efficientnet@sha256:")
    assert summary["normalization"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def test_run__source_predicts_as_the_network_does(
    tta_command: Command, small: list[str], files: Path, tmp_path: Path
) -> None:
    """Class by class, whatever the order of the images; the network is called here on the files themselves."""
    for seed in (0, 1):
        tta_command(*small, "method=source", f"seed={seed}", f"runs_dir={'ab'[seed]}")
    a, b = only_run(tmp_path / "a"), only_run(tmp_path / "b")
    assert rows(a / "batches.csv") != rows(b / "batches.csv")
    assert rows(a / "classes.csv") == rows(b / "classes.csv")
    net = timm.create_model("test_efficientnet", num_classes=10).eval()
    net.load_state_dict(load_file(files / "net.safetensors"))
    truth = np.load(files / "CIFAR-10-C" / "labels.npy")[:N]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = []
    for name in ("gaussian_noise", "fog"):
        images = torch.from_numpy(np.load(files / "CIFAR-10-C" / f"{name}.npy")[-N:]).permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            predicted = net((images - mean) / std).argmax(1).numpy()
        for label in range(10):
            right = (predicted == label) & (truth == label)
            expected.append([name, label, (truth == label).sum(), (predicted == label).sum(), right.sum()])
    columns = ("domain", "class", "labels", "predictions", "correct")
    assert [[row[key] for key in columns] for row in rows(a / "classes.csv")] == [[str(v) for v in e] for e in expected]


def test_run__is_known_by_the_content_of_its_files(
    tta_command: Command, small: list[str], files: Path, tmp_path: Path
) -> None:
    """And not by their place."""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(files, elsewhere)
    moved = [word.replace(str(files), str(elsewhere)) for word in small]

    def runs() -> int:
        return len(list((tmp_path / "runs").rglob("summary.json")))

    tta_command(*small, "method=source")
    tta_command(*moved, "method=source")
    assert runs() == 1
    images = np.load(elsewhere / "CIFAR-10-C" / "fog.npy")
    np.save(elsewhere / "CIFAR-10-C" / "fog.npy", images[::-1])
    tta_command(*moved, "method=source")
    assert runs() == 2
    torch.manual_seed(1)
    save_file(timm.create_model("test_efficientnet", num_classes=10).state_dict(), str(elsewhere / "net.safetensors"))
    tta_command(*moved, "method=source")
    assert runs() == 3


def test_run__skips_unreadable_images_if_told(
    tta_command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (broken,) = (tree(tmp_path / "data") / "fog" / "5").rglob("0.JPEG")
    broken.write_bytes(b"\xff\xd8 no image")
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet").state_dict(), str(tmp_path / "net.safetensors"))
    words = ["stream=imagenet_c", "stream.root=data", "stream.corruptions=fog", "stream.size=32"]
    words += ["stream.workers=0", "method=bn_adapt"]
    words += ["model=timm", "model.name=test_efficientnet", "model.checkpoint=net.safetensors", "device=cpu"]
    with raises_naming(SystemExit, "0.JPEG", "stream.on_error=skip"):
        tta_command(*words)
    tta_command(*words, "stream.on_error=skip")
    summary = json.loads((only_run(tmp_path / "runs") / "summary.json").read_text())
    assert_names(capsys.readouterr().out, TREE_IMAGES - 1, "summary.json")
    assert summary["images"] == TREE_IMAGES - 1
    (skipped,) = summary["skipped"]
    assert_names(skipped, "0.JPEG")
    assert summary["domains"][0]["skipped"] == 1


def test_run__that_diverges_keeps_its_rows(tta_command: Command, small: list[str], tmp_path: Path) -> None:
    with raises_naming(SystemExit, "1", "optimizer.lr"):
        tta_command(*small, "optimizer.lr=1e30")
    (batches,) = tmp_path.rglob("batches.csv")
    assert [row["step"] for row in rows(batches)] == ["0", "1"]
    assert not batches.with_name("summary.json").exists()


def test_run__ends_at_ctrl_c(
    tta_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It keeps its rows, and does not look finished."""
    arguments = own_words(tmp_path / "own", "method=watching")
    step = Watching.step

    def interrupted(self: Watching, images: torch.Tensor) -> torch.Tensor:
        if WATCH.calls == 4:
            signal.raise_signal(signal.SIGINT)
        return step(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Watching, "step", interrupted)
        with pytest.raises(SystemExit) as exit_:
            tta_command(*arguments)
    assert exit_.value.code == 130
    (batches,) = tmp_path.rglob("batches.csv")
    assert_names(capsys.readouterr().err, batches.parent.name)
    assert len(rows(batches)) == 4
    assert not list(tmp_path.rglob("summary.json"))
    tta_command(*arguments)
    assert len(rows(only_run(tmp_path / "runs") / "batches.csv")) == 6


@pytest.mark.slow
def test_run__compiled_says_so_and_is_the_same_run(
    tta_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = functools.partialmethod(Method.compile, backend="aot_eager")  # the usual one takes a minute
    monkeypatch.setattr(Method, "compile", compiled)
    arguments = own_words(tmp_path / "own", "method=tent", "stream.domains=1")
    tta_command(*arguments, "compile=true")
    assert json.loads((only_run(tmp_path / "runs") / "summary.json").read_text())["compiled"] is True
    expected = [float(row["entropy"]) for row in rows(only_run(tmp_path / "runs") / "batches.csv")]
    tta_command(*arguments)
    assert json.loads((only_run(tmp_path / "runs") / "summary.json").read_text())["compiled"] is True
    tta_command(*arguments, "force=true")
    found = [float(row["entropy"]) for row in rows(only_run(tmp_path / "runs") / "batches.csv")]
    assert found == pytest.approx(expected, abs=1e-4)


# What is composed


def test_experiment__is_a_sweep_in_one_file(tta_command: Command, tmp_path: Path) -> None:
    arguments = own_words(tmp_path / "own", "stream.domains=1", "stream.images=8", "optimizer.lr=0.1", "seed=1")
    tta_command(*arguments, "experiment=lr_sensitivity", "scenario=continual")
    summaries = [json.loads(file.read_text()) for file in (tmp_path / "runs").rglob("summary.json")]
    assert sorted(summary["choices"]["objective"] for summary in summaries) == ["adadem", "adadem_v", "em"]
    assert all(summary["config"]["method"]["optimizer"]["momentum"] == 0 for summary in summaries)


def test_objective__takes_the_place_of_the_methods_own(tta_command: Command, tmp_path: Path) -> None:
    arguments = own_words(tmp_path / "own", "objective=adadem", "optimizer.lr=0.01")
    for method in ("tent", "adadem"):
        tta_command(*arguments, f"method={method}", f"runs_dir={method}")
    a, b = (rows(only_run(tmp_path / method) / "batches.csv") for method in ("tent", "adadem"))
    assert a == b


def test_config__has_rates_for_method_and_model() -> None:
    rates = {("tent", "vit_b16"): 0.001, ("adadem", "vit_b16"): 0.05, ("adadem", "resnet50"): 0.005}
    for (method, model), rate in rates.items():
        assert composed(f"method={method}", f"model={model}").optimizer.lr == rate


def test_help__names_groups_options_and_keys(tta_command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    tta_command("--help")
    text = capsys.readouterr().out
    assert_names(text, "method", "stream", "tta -m method=", "optimizer.lr", "--cfg job")
    assert_names(text, *(path.stem for group in ("method", "stream") for path in (CONFIGS / group).glob("*.yaml")))
    assert "hparams" not in text  # nobody chooses them by hand
    assert max(len(line) for line in text.splitlines()) <= 120


def test_python_m_tta__is_the_same_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tta", "--cfg", "job", "-p", "scenario"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "reset: domain" in result.stdout


def test_warning__is_a_line_of_its_own(tta_command: Command, small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the place in the code that it comes from."""
    told: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda *args, **_: told.append(warnings.formatwarning(*args[:4])))
        tta_command(*small[:-2], "model.pretrained=false", "model.num_classes=10", "device=cpu", "stream.limit=8")
    (line,) = (text for text in told if "model.pretrained=false" in text)
    assert_names(line, "tta: warning", "test_efficientnet")
    assert line.count("\n") == 1
    assert ".py" not in line


# What is wrong with what a user gives

WRONG: dict[str, tuple[str, tuple[object, ...]]] = {
    "option": ("method=tentt", ("method/tentt", "tent", "adadem")),
    "key": ("stream.rot=x", ("stream.rot", "stream.root")),
    "root": ("stream.root=/nowhere", ("stream.root", "CIFAR-10-C", "/nowhere")),
    "no root": ("stream.root=???", ("stream.root",)),
    "corruption": ("stream.corruptions=fogg", ("fogg", "fog")),
    "one image left over": ("stream.batch_size=19", ("batch of 1", "stream.batch_size")),
    "seed": ("seed=x", ("seed", "'x'")),
    "negative learning rate": ("optimizer.lr=-1", ("optimizer.lr", "-1")),
    "argument of a class": ("+optimizer.mu=1", ("method", "SGD", "mu")),
    "steps": ("method.steps=0", ("method.steps", "1", "0")),
    "compile": ("compile=maybe", ("compile", "'maybe'", "true", "false")),
    "checkpoint.every": ("checkpoint.every=0", ("checkpoint.every", "1", "0")),
    "runs directory": ("runs_dir=/dev/null/runs", ("runs_dir", "/dev/null/runs")),
}


@pytest.mark.parametrize(("word", "named"), WRONG.values(), ids=WRONG.keys())
def test_error__names_what_is_wrong(
    tta_command: Command, small: list[str], tmp_path: Path, word: str, named: tuple[object, ...]
) -> None:
    """It makes neither a run nor a mess of the environment."""
    before = dict(os.environ)
    key = word.partition("=")[0]
    with raises_naming(SystemExit, "tta: error: ", *named):
        tta_command(*[old for old in small if old.partition("=")[0] != key], word)
    assert dict(os.environ) == before
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_error__cuda_where_there_is_none(tta_command: Command, small: list[str]) -> None:
    with raises_naming(SystemExit, "CUDA", "device=cpu"):
        tta_command(*small[:-1], "device=cuda")


@pytest.mark.parametrize(("classes", "hints"), [(7, ()), (12, ("stream.num_classes=12", "stream.classes"))])
def test_error__classes_of_backbone_and_stream_differ(
    tta_command: Command, small: list[str], tmp_path: Path, classes: int, hints: tuple[str, ...]
) -> None:
    weights = tmp_path / "other.safetensors"
    save_file(timm.create_model("test_efficientnet", num_classes=classes).state_dict(), str(weights))
    with raises_naming(SystemExit, classes, 10, "model.checkpoint", *hints) as error:
        tta_command(*small, f"model.checkpoint={weights}")
    assert ("stream.num_classes" in str(error.value)) == bool(hints)


MINE = """
import torch
from tta.methods import Source
from tta.objectives import Objective


class Nothing(Source):
    def step(self, images):
        super().step(images)


class Bare(Source):
    def __init__(self, backbone):
        self.threshold = 0.5


class Mean(Objective):
    def loss(self, z):
        return z.softmax(-1).square().sum(-1).mean()


class Detached(Objective):
    def loss(self, z):
        return z.detach().softmax(-1).square().sum(-1)


def batches():
    return [torch.zeros(4, 3, 32, 32)]


def net():
    return torch.nn.Linear(3, 10)
"""
"""Parts as a newcomer may write them."""

MISTAKES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "returns nothing": ("method", "_target_: mine.Nothing", ("Nothing.step", "NoneType")),
    "no target": ("method", "target: mine.Nothing", ("method", "_target_")),
    "no super": ("method", "_target_: mine.Bare", ("method", "Bare.__init__", "super().__init__")),
    "no such module": ("method", "_target_: yours.X", ("yours", "PYTHONPATH")),
    "no such class": ("method", "_target_: mine.X", ("mine.X",)),
    "no YAML": ("method", "_target_: mine.X\n  a: b", ("part.yaml", "line 2")),
    "one loss": ("objective", "_target_: mine.Mean", ("Mean.loss", "(8,)", "()")),
    "no gradient": ("objective", "_target_: mine.Detached", ("Tent", "loss", "detached")),
    "no stream": ("stream", "_target_: mine.batches", ("stream", "mine.batches", "tta.streams.Stream", "list")),
    "no backbone": ("model", "_target_: mine.net", ("model", "mine.net", "Backbone", "Linear")),
}


@pytest.mark.parametrize(("group", "text", "named"), MISTAKES.values(), ids=MISTAKES.keys())
def test_error__names_the_mistake_in_an_own_part(
    tta_command: Command, small: list[str], tmp_path: Path, group: str, text: str, named: tuple[str, ...]
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "my_configs" / group).mkdir(parents=True)
    (tmp_path / "my_configs" / group / "part.yaml").write_text(text)
    words = [word for word in small if not word.startswith((f"{group}.", f"{group}="))]
    with raises_naming(SystemExit, "tta: error: ", *named):
        tta_command("--config-dir", "my_configs", *words, f"{group}=part")
    assert not list(tmp_path.rglob("summary.json"))

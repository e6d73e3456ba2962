"""The command line, run in this process as a user would type it."""

from __future__ import annotations

import csv
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

import tta.runner
from helpers.sweep_files import make_files
from tta.checkpoints import Checkpoints
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


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return list(csv.DictReader(lines))


def only_run(folder: Path) -> Path:
    (summary,) = folder.rglob("summary.json")
    return summary.parent


def test_a_run_leaves_its_files_and_their_figures_agree(tta_command: Command, small: list[str], tmp_path: Path) -> None:
    tta_command(*small, "method=adadem", "seed=3")
    run = only_run(tmp_path / "runs")
    batches, domains = rows(run / "batches.csv"), rows(run / "domains.csv")
    summary = json.loads((run / "summary.json").read_text())
    assert [row["n"] for row in batches] == ["8", "8", "4"] * 2
    assert [row["step"] for row in batches] == list("012345")
    assert {row["domain"] for row in batches[:3]} == {"gaussian_noise"}
    correct = [float(row["batch_accuracy"]) * int(row["n"]) for row in batches]
    assert float(batches[1]["domain_accuracy"]) == pytest.approx(sum(correct[:2]) / 16, abs=1e-5)
    assert float(batches[3]["domain_accuracy"]) == pytest.approx(correct[3] / 8, abs=1e-5)
    assert float(batches[-1]["online_accuracy"]) == pytest.approx(sum(correct) / 40, abs=1e-5)
    assert float(domains[1]["accuracy"]) == pytest.approx(sum(correct[3:]) / 20, abs=1e-5)
    assert summary["accuracy"] == pytest.approx(np.mean([float(row["accuracy"]) for row in domains]), abs=1e-5)
    assert summary["online_accuracy"] == pytest.approx(sum(correct) / 40)
    assert [row["used"] for row in batches] == [row["n"] for row in batches]
    classes = rows(run / "classes.csv")
    assert len(classes) == 2 * 10
    assert sum(int(row["predictions"]) for row in classes) == 40
    assert sum(int(row["correct"]) for row in classes) == pytest.approx(sum(correct), abs=1e-3)
    # What a reader needs to trust and repeat the figures.
    assert summary["images"] == 40
    assert [domain["n"] for domain in summary["domains"]] == [20, 20]
    assert summary["weights"].startswith("test_efficientnet@sha256:")
    assert summary["normalization"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert summary["reset"] == "domain"
    assert len(summary["data"]) == 12
    assert summary["config"]["seed"] == 3
    assert summary["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert summary["command"][1:4] == small[:3]
    assert summary["device"].startswith("cpu")
    assert OmegaConf.to_container(OmegaConf.load(run / "config.yaml")) == summary["config"]


def without_seconds(file: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows(file)]


def test_same_seed_same_rows_other_seed_other_order(tta_command: Command, small: list[str], tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        tta_command(*small, f"runs_dir={folder}", f"seed={seed}")
    a, b, c = (without_seconds(only_run(tmp_path / folder) / "batches.csv") for folder in "abc")
    assert a == b
    assert a != c
    source = [without_seconds(self_run(tta_command, small, tmp_path, seed) / "domains.csv") for seed in (0, 1)]
    assert source[0] == source[1]  # the same images: a frozen model does not care for their order


def self_run(tta_command: Command, small: list[str], tmp_path: Path, seed: int) -> Path:
    tta_command(*small, "method=source", f"runs_dir=source{seed}", f"seed={seed}")
    return only_run(tmp_path / f"source{seed}")


def test_single_domain_resets_and_continual_does_not(tta_command: Command, small: list[str], tmp_path: Path) -> None:
    small = [*small, "optimizer.lr=1", "stream.corruptions=[gaussian_noise,fog]"]
    tta_command(*small, "scenario=single_domain", "runs_dir=single")
    tta_command(*small, "scenario=continual", "runs_dir=continual")
    alone = [word.replace("[gaussian_noise,fog]", "fog") for word in small]
    tta_command(*alone, "runs_dir=alone")
    figures = {
        name: [row["entropy"] for row in rows(only_run(tmp_path / name) / "batches.csv") if row["domain"] == "fog"]
        for name in ("single", "continual", "alone")
    }
    assert figures["single"] == figures["alone"]
    assert figures["continual"] != figures["alone"]


def test_a_sweep_runs_each_combination_and_what_is_finished_is_not_run_again(
    tta_command: Command, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tta_command("-m", *small, "method=source,bn_adapt,tent,adadem", "stream.corruptions=fog")
    assert len(list((tmp_path / "runs").rglob("summary.json"))) == 4
    capsys.readouterr()
    tta_command(*small, "method=tent", "stream.corruptions=fog")
    assert "finished already" in capsys.readouterr().out
    before = [file.stat().st_mtime_ns for file in sorted((tmp_path / "runs").rglob("batches.csv"))]
    tta_command(*small, "method=tent", "stream.corruptions=fog", "force=true")
    assert "finished already" not in capsys.readouterr().out
    after = [file.stat().st_mtime_ns for file in sorted((tmp_path / "runs").rglob("batches.csv"))]
    assert sum(a != b for a, b in zip(after, before, strict=True)) == 1


def test_a_run_is_known_by_the_content_of_its_files_and_not_by_their_place(
    tta_command: Command, small: list[str], files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(files, elsewhere)
    moved = [word.replace(str(files), str(elsewhere)) for word in small]
    tta_command(*small, "method=source")
    tta_command(*moved, "method=source")
    assert "finished already" in capsys.readouterr().out
    images = np.load(elsewhere / "CIFAR-10-C" / "fog.npy")
    np.save(elsewhere / "CIFAR-10-C" / "fog.npy", images[::-1])
    tta_command(*moved, "method=source")
    assert "finished already" not in capsys.readouterr().out
    torch.manual_seed(1)
    save_file(timm.create_model("test_efficientnet", num_classes=10).state_dict(), str(elsewhere / "net.safetensors"))
    tta_command(*moved, "method=source")
    assert "finished already" not in capsys.readouterr().out
    assert len(list((tmp_path / "runs").rglob("summary.json"))) == 3


def test_an_experiment_is_a_sweep_in_one_file(tta_command: Command, small: list[str], tmp_path: Path) -> None:
    tta_command("experiment=lr_sensitivity", *small, "stream.corruptions=fog", "optimizer.lr=0.1", "seed=1")
    summaries = [json.loads(file.read_text()) for file in (tmp_path / "runs").rglob("summary.json")]
    found = {(summary["choices"]["objective"], summary["choices"]["scenario"]) for summary in summaries}
    assert len(summaries) == len(found) == 3 * 2
    assert all(summary["config"]["method"]["optimizer"]["momentum"] == 0 for summary in summaries)


def test_what_a_method_does_not_use_does_not_make_another_run(
    tta_command: Command, small: list[str], tmp_path: Path
) -> None:
    tta_command("-m", *small, "method=source", "objective=em,adadem", "optimizer.lr=0.1,0.2", "stream.corruptions=fog")
    assert only_run(tmp_path / "runs")


@pytest.mark.parametrize("objective", ["em", "adadem"])
def test_an_objective_takes_the_place_of_the_methods_own(
    tta_command: Command, small: list[str], tmp_path: Path, objective: str
) -> None:
    for method in ("tent", "adadem"):
        tta_command(*small, f"method={method}", f"objective={objective}", "optimizer.lr=0.01", f"runs_dir={method}")
    a, b = (without_seconds(only_run(tmp_path / method) / "batches.csv") for method in ("tent", "adadem"))
    assert a == b


def test_defaults_of_the_methods_are_told_apart(tta_command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    rates = {}
    for method, model in (("tent", "resnet50"), ("tent", "vit_b16"), ("adadem", "vit_b16"), ("adadem", "resnet50")):
        tta_command("--cfg", "job", f"method={method}", f"model={model}")
        rates[method, model] = OmegaConf.create(capsys.readouterr().out).optimizer.lr
    assert rates == {
        ("tent", "resnet50"): 0.00025,
        ("tent", "vit_b16"): 0.001,
        ("adadem", "vit_b16"): 0.05,
        ("adadem", "resnet50"): 0.005,
    }


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_half_precision_runs(tta_command: Command, small: list[str], tmp_path: Path, name: str) -> None:
    tta_command(*small, f"precision={name}")
    assert json.loads((only_run(tmp_path / "runs") / "summary.json").read_text())["config"]["precision"] == name


def test_a_compiled_run_says_so_and_is_the_same_run(
    tta_command: Command, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    compiled = functools.partialmethod(Method.compile, backend="aot_eager")  # the usual one takes a minute
    monkeypatch.setattr(Method, "compile", compiled)
    tta_command(*small, "compile=true")
    assert json.loads((only_run(tmp_path / "runs") / "summary.json").read_text())["compiled"] is True
    tta_command(*small)
    assert "finished already" in capsys.readouterr().out


def test_a_checkpoint_is_bound_to_run_code_and_device(
    tta_command: Command, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, str]] = []
    monkeypatch.setattr(Checkpoints, "load", lambda self, say: told.append(self.origin))
    monkeypatch.setattr("tta.checkpoints.code_digest", lambda *parts: " ".join(type(part).__name__ for part in parts))
    tta_command(*small)
    (origin,) = told
    assert set(origin) == {"run", "code", "device"}
    assert only_run(tmp_path / "runs").name.endswith(f"-{origin['run']}")
    assert origin["code"] == "Tent Stream Scenario"
    assert origin["device"]


def test_the_command_leaves_the_environment_as_it_was(tta_command: Command, small: list[str]) -> None:
    before = dict(os.environ)
    with pytest.raises(SystemExit, match="seed must be"):
        tta_command(*small, "seed=-1")
    assert dict(os.environ) == before


def test_help_names_groups_options_and_examples(tta_command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    tta_command("--help")
    text = capsys.readouterr().out
    for word in ("method: adadem, bn_adapt", "stream:", "tta -m method=", "optimizer.lr", "--cfg job"):
        assert word in text
    assert all(path.stem in text for path in (CONFIGS / "method").glob("*.yaml"))
    assert "hparams" not in text  # nobody chooses them by hand
    assert max(len(line) for line in text.splitlines()) <= 120


WRONG = {
    "unknown option": (["method=tentt"], r"Could not find 'method/tentt'(.|\n)*adadem(.|\n)*tent"),
    "unknown key": (["stream.rot=x"], "no key 'stream.rot'.*did you mean stream.root"),
    "unknown top key": (["sede=1"], "no key 'sede'.*did you mean seed"),
    "missing root": (["stream.root=/nowhere"], "stream.root: expected CIFAR-10-C .* but /nowhere does not exist"),
    "root not given": (["stream.root=???"], "stream.root is needed: give it with stream.root="),
    "missing corruption": (["stream.corruptions=frost"], "frost.npy is missing; the corruptions there are: fog, gauss"),
    "unknown corruption": (["stream.corruptions=fogg"], "no corruption 'fogg'; did you mean fog"),
    "severity 0": (["stream.severity=0"], "stream.severity must be a whole number from 1 to 5, got 0"),
    "severity 6": (["stream.severity=6"], "stream.severity must be a whole number from 1 to 5, got 6"),
    "one image": (["stream.batch_size=1"], "at least 2 images in every batch"),
    "one image left over": (["stream.batch_size=19"], "got a batch of 1: choose another stream.batch_size"),
    "no images": (["stream.limit=0"], "stream.limit must be a whole number of at least 1, got 0"),
    "seed": (["seed=x"], "seed must be a whole number of at least 0, got 'x'"),
    "learning rate": (["optimizer.lr=x"], "optimizer.lr must be a number of at least 0, got 'x'"),
    "negative learning rate": (["optimizer.lr=-1"], "optimizer.lr must be a number of at least 0, got -1"),
    "argument of a class": (["+optimizer.mu=1"], r"method: SGD.__init__\(\) got an unexpected keyword argument 'mu'"),
    "steps": (["method.steps=0"], "method.steps must be a whole number of at least 1, got 0"),
    "device": (["device=tpu"], "device must be auto, cpu, cuda or cuda:<number>, got 'tpu'"),
    "precision": (["precision=fp8"], "precision must be one of fp32, tf32, bf16, fp16; got 'fp8'"),
    "compile": (["compile=maybe"], "compile must be true or false, got 'maybe'"),
    "graph": (["graph=1"], "graph must be true or false, got 1"),
    "graph on a CPU": (["graph=true", "device=cpu"], "graph=true is for GPUs, and this run is on device=cpu: run it"),
    "force": (["force=1"], "force must be true or false, got 1"),
    "runs directory": (["runs_dir=/dev/null/runs"], "runs_dir: .* cannot be written .*choose another"),
    "diverges": (["optimizer.lr=1e30"], "is not finite at step 1 .*smaller optimizer.lr"),
    "model": (["model.name=resnet5", "model.checkpoint=null"], "no model 'resnet5'; did you mean resnet50"),
    "checkpoint": (["model.checkpoint=/nowhere.pt"], "there is no file /nowhere.pt"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_told_in_a_sentence(
    tta_command: Command, small: list[str], tmp_path: Path, words: list[str], message: str
) -> None:
    keys = {word.partition("=")[0] for word in words}
    with pytest.raises(SystemExit, match=message) as exit_:
        tta_command(*[word for word in small if word.partition("=")[0] not in keys], *words)
    assert str(exit_.value.code).startswith("tta: error: ")
    assert not list(tmp_path.rglob("summary.json"))


MINE = """
import torch
from tta.methods import Source
from tta.objectives import Objective


class Nothing(Source):
    def step(self, images):
        super().step(images)


class Columns(Source):
    def step(self, images):
        return super().step(images).t()


class Bare(Source):
    def __init__(self, backbone):
        self.threshold = 0.5


class Power(Objective):
    def __init__(self):
        self.power = 2

    def loss(self, z):
        return -z.softmax(-1).pow(self.power).sum(-1)


class Mean(Objective):
    def loss(self, z):
        return z.softmax(-1).square().sum(-1).mean()


class Detached(Objective):
    def loss(self, z):
        return z.detach().softmax(-1).square().sum(-1)


class NoMethod:
    def __init__(self, backbone):
        pass


def batches():
    return [torch.zeros(4, 3, 32, 32)]


def net():
    return torch.nn.Linear(3, 10)
"""
"""Parts as a newcomer may write them."""

MISTAKES = {
    "returns nothing": (
        "method",
        "_target_: mine.Nothing",
        "Nothing.step must give .* it gave NoneType: .*return logi",
    ),
    "other shape": ("method", "_target_: mine.Columns", r"Columns.step must return logits \(N, C\), .*a tensor \(10, "),
    "no method": (
        "method",
        "_target_: mine.NoMethod",
        "method: mine.NoMethod must make a tta.methods.Method, it gave No",
    ),
    "no target": ("method", "target: mine.Nothing", "method: the configuration names no _target_: give the class"),
    "no super": ("method", "_target_: mine.Bare", r"method: Bare.__init__ must begin with super\(\).__init__\(...\)"),
    "no super in an objective": ("objective", "_target_: mine.Power", r"method: Power.__init__ must begin with super"),
    "a program": (
        "method",
        "_target_: subprocess.run\nargs: [touch, called]",
        "_target_: subprocess.run is not called: ",
    ),
    "a program in a part": (
        "optimizer",
        "_target_: mine.torch.hub.load\nlr: 0.1",
        r"mine.torch.hub.load is not called: .*import it in a file of yours, and name it there, as mine.load",
    ),
    "no such module": ("method", "_target_: yours.X", "No module named 'yours'(.|\n)*the current folder, .*PYTHONPATH"),
    "no such class": (
        "method",
        "_target_: mine.X",
        "Error loading 'mine.X'(.|\n)*'X' is importable from module 'mine'",
    ),
    "no YAML": ("method", "_target_: mine.X\n  a: b", "mapping values are not allowed here(.|\n)*part.yaml.*line 2"),
    "one loss": (
        "objective",
        "_target_: mine.Mean",
        r"Mean.loss must return a loss for each sample, \(\d+,\).*tensor \(\)",
    ),
    "no gradient": ("objective", "_target_: mine.Detached", "Tent: the loss hangs on nothing that adapts: .*detached"),
    "no stream": (
        "stream",
        "_target_: mine.batches",
        "stream: mine.batches must make a tta.streams.Stream, it gave list",
    ),
    "no backbone": (
        "model",
        "_target_: mine.net",
        "model: mine.net must make a tta.backbones.Backbone, it gave Linear",
    ),
}


@pytest.mark.parametrize(("group", "text", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_a_part_of_ones_own_is_told_in_a_sentence(
    tta_command: Command, small: list[str], tmp_path: Path, group: str, text: str, message: str
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "my_configs" / group).mkdir(parents=True)
    (tmp_path / "my_configs" / group / "part.yaml").write_text(text)
    words = [word for word in small if not word.startswith((f"{group}.", f"{group}="))]
    with pytest.raises(SystemExit, match=message) as exit_:
        tta_command("--config-dir", "my_configs", *words, f"{group}=part")
    assert str(exit_.value.code).startswith("tta: error: ")
    assert not list(tmp_path.rglob("summary.json"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(tta_command: Command, small: list[str]) -> None:
    with pytest.raises(SystemExit, match="sees these CUDA devices: none; use device=cpu"):
        tta_command(*small, "device=cuda")


@pytest.mark.parametrize(
    ("classes", "hint"),
    [
        (7, r"choose a model trained for these classes \(model=..., model.checkpoint=...\)$"),
        (12, "; or, .* stream.num_classes=12 for labels in a file, and for folders stream.classes=<text file with the"),
    ],
)
def test_classes_of_backbone_and_stream_must_agree(
    tta_command: Command, small: list[str], files: Path, tmp_path: Path, classes: int, hint: str
) -> None:
    weights = tmp_path / "other.safetensors"
    save_file(timm.create_model("test_efficientnet", num_classes=classes).state_dict(), str(weights))
    with pytest.raises(SystemExit, match=f"has {classes} classes, the stream has 10: .*{hint}"):
        tta_command(*small, f"model.checkpoint={weights}")


def test_a_run_that_cannot_start_leaves_nothing(tta_command: Command, small: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        tta_command(*small, "stream.batch_size=1")
    assert not (tmp_path / "runs").exists()


def test_a_diverged_run_keeps_its_rows(tta_command: Command, small: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="not finite"):
        tta_command(*small, "optimizer.lr=1e30")
    (batches,) = tmp_path.rglob("batches.csv")
    assert [row["step"] for row in rows(batches)] == ["0", "1"]


def test_ctrl_c_keeps_the_rows_and_does_not_look_finished(
    tta_command: Command,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    predict = tta.runner.Runner._predict
    calls = iter(range(100))

    def interrupted(self: tta.runner.Runner, images: torch.Tensor) -> torch.Tensor:
        if next(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        return predict(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(tta.runner.Runner, "_predict", interrupted)
        with pytest.raises(SystemExit) as exit_:
            tta_command(*small)
    assert exit_.value.code == 130
    assert "interrupted; its rows so far are in" in capsys.readouterr().err
    (batches,) = tmp_path.rglob("batches.csv")
    assert len(rows(batches)) == 4
    assert not list(tmp_path.rglob("summary.json"))
    # The next call does not take it for finished.
    tta_command(*small)
    assert len(rows(only_run(tmp_path / "runs") / "batches.csv")) == 6


def test_an_image_that_cannot_be_read_is_skipped_and_counted_when_told(
    tta_command: Command, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wnids = sorted(folder for folder in (shared / "data" / "imagenet-224-1000").iterdir() if folder.is_dir())[:3]
    for wnid in wnids:
        shutil.copytree(wnid, tmp_path / "data" / "fog" / "5" / wnid.name)
    (tmp_path / "data" / "fog" / "5" / wnids[0].name / "broken.JPEG").write_bytes(b"\xff\xd8 no image")
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet").state_dict(), str(tmp_path / "net.safetensors"))
    words = ["stream=imagenet_c", "stream.root=data", "stream.corruptions=fog", "stream.workers=0", "method=bn_adapt"]
    words += ["model=timm", "model.name=test_efficientnet", "model.checkpoint=net.safetensors", "device=cpu"]
    with pytest.raises(SystemExit, match=r"1 unreadable image.*broken.JPEG.*stream.on_error=skip"):
        tta_command(*words)
    tta_command(*words, "stream.on_error=skip")
    summary = json.loads((only_run(tmp_path / "runs") / "summary.json").read_text())
    assert "3 images (1 more could not be read: summary.json names them) in" in capsys.readouterr().out
    assert summary["images"] == 3
    assert len(summary["skipped"]) == 1
    assert summary["domains"][0]["skipped"] == 1


def test_a_warning_is_a_line_that_says_whose_it_is(
    tta_command: Command, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda *args, **_: told.append(warnings.formatwarning(*args[:4])))
        tta_command(*small[:-2], "model.pretrained=false", "model.num_classes=10", "device=cpu", "stream.limit=8")
    assert "tta: warning: test_efficientnet: random weights (model.pretrained=false and no model.checkpoint)\n" in told


def test_python_m_tta_is_the_same_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tta", "--cfg", "job", "-p", "scenario"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "reset: domain" in result.stdout

from __future__ import annotations

import importlib
import multiprocessing
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from helpers import sweep_files
from helpers.forks import forked
from tta import cli
from tta.compare import find_runs

FORK = multiprocessing.get_context("fork")
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmark.py"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call the script in this process and forks of it, which have imported already what takes longest."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: FORK)

    def call(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        importlib.import_module("benchmark").main()

    return call


def test_objectives_are_ratios_of_em_and_say_where_they_come_from(
    benchmark: Callable[..., None], tmp_path: Path
) -> None:
    out = tmp_path / "table.md"
    words = ["objectives", "--device", "cpu", "--rounds", "1", "--shapes", "4x5", "8x3", "--out", str(out)]
    benchmark(*words)
    rows = [line.strip("| ").split(" | ") for line in out.read_text().splitlines() if line.startswith("| ")]
    cells = {row[0]: row[1:] for row in rows}
    assert rows[0][-2:] == ["4 x 5", "8 x 3"]
    assert all(cell.endswith(" ms") for cell in cells["EM"])
    assert all(float(cell) > 0 for name in ("CADF", "AdaDEM", "COME", "SLR") for cell in cells[name])
    assert "benchmark.py objectives --device cpu" in out.read_text()


def test_methods_are_ratios_of_a_forward_pass_and_say_where_they_come_from(
    benchmark: Callable[..., None], tmp_path: Path
) -> None:
    out = tmp_path / "table.md"
    words = ["methods", "--device", "cpu", "--rounds", "1", "--model", "resnet10t", "--batch", "2", "--size", "32"]
    words += ["--methods", "source", "tent", "--out", str(out)]
    benchmark(*words)
    rows = [line.strip("| ").split(" | ") for line in out.read_text().splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["forward pass", "source", "tent"]
    time, memory = rows[2][1:]
    assert time.endswith(" ms")
    assert memory.endswith(" MiB")
    assert all(float(cell) > 0 for row in rows[3:] for cell in row[1:])
    assert "benchmark.py methods --device cpu" in out.read_text()


def test_corruptions_are_images_per_second_beside_the_plain_recipes(
    benchmark: Callable[..., None], tmp_path: Path
) -> None:
    out = tmp_path / "table.md"
    words = ["corruptions", "--device", "cpu", "--rounds", "1", "--batch", "2", "--scales", "32"]
    words += ["--corruptions", "fog", "contrast", "--out", str(out)]
    benchmark(*words)
    rows = [line.strip("| ").split(" | ") for line in out.read_text().splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["fog", "contrast", "geometric mean", "arithmetic mean"]
    for ours, recipe, ratio in (row[1:] for row in rows[2:4]):
        assert abs(float(ratio) - float(ours) / float(recipe)) < 0.1 + 0.01 * float(ratio)
    fog, contrast, geometric, arithmetic = (float(row[-1]) for row in rows[2:])
    assert abs(geometric - (fog * contrast) ** 0.5) < 0.1 + 0.05 * geometric
    assert abs(arithmetic - (fog + contrast) / 2) < 0.11
    assert "benchmark.py corruptions --device cpu" in out.read_text()


def test_steps_are_ratios_to_a_plain_script_and_to_a_forward_pass(
    benchmark: Callable[..., None], tmp_path: Path
) -> None:
    out = tmp_path / "table.md"
    words = ["step", "--device", "cpu", "--rounds", "1", "--batches", "1", "--sizes", "32", "--precisions", "fp32"]
    benchmark(*words, "--out", str(out))
    rows = [line.strip("| ").split(" | ") for line in out.read_text().splitlines() if line.startswith("| ")]
    cells = dict(rows[2:])
    assert re.fullmatch(r"\d+\.\d\d s, \d+ MiB", cells["run, plain script (fp32)"])
    assert re.fullmatch(r"\d+\.\d\d times as fast, \d\.\d\d of the memory", cells["run, ours, fp32"])
    assert float(cells["step over forward pass, fp32"]) > 1.5  # a forward and a backward pass
    assert 0.5 < float(cells["AdaDEM's step over EM's, fp32"]) < 2
    assert re.fullmatch(r"\d+\.\d %", cells["of a run, outside its steps"])
    assert 0 < float(cells["step's FLOP/s over those of a matrix product, fp32"].split()[0]) < 1


def test_a_profile_tells_the_kinds_of_work_apart(benchmark: Callable[..., None], tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    words = ["profile", "--device", "cpu", "--rounds", "1", "--sizes", "32", "--precisions", "fp32"]
    benchmark(*words, "--out", str(out))
    rows = [line.strip("| ").split(" | ") for line in out.read_text().splitlines() if line.startswith("| ")]
    forward, step, more = (
        dict(zip([row[0] for row in rows[2:]], map(float, column), strict=True))
        for column in list(zip(*rows[2:], strict=True))[1:]
    )
    for kind in ("convolution, backward", "BatchNorm, backward"):
        assert forward[kind] == 0 < step[kind]
    for kind in ("convolution", "BatchNorm"):
        assert forward[kind] > 0 < step[kind]
    assert step["the rest"] < 0.3 * step["all"]  # what is timed has a name
    assert abs(sum(step.values()) - 2 * step["all"]) < 0.5
    assert abs(more["all"] - (step["all"] / forward["all"] - 1)) < 0.01
    assert "mean of 1 rounds" in out.read_text()


def test_curves_have_a_row_for_each_value(benchmark: Callable[..., None], tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    words = ["curves", "--device", "cpu", "--rounds", "1", "--batches", "2", "4", "--classes", "5", "--pixels", "64"]
    benchmark(*words, "--replicas", "1", "2", "--out", str(out))
    rows = [line.strip("| ").split(" | ") for line in out.read_text().splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows if row[0] != "---"] == [
        "batch",
        "2",
        "4",
        "classes",
        "5",
        "size",
        "64",
        "runs",
        "1",
        "2",
    ]
    figures = [row for row in rows if row[0].isdecimal()]
    assert all(float(cell) > 0 for row in figures for cell in row)
    forward, em, _, over_forward, _ = map(float, figures[0][1:])
    assert abs(over_forward - forward / em) < 0.1 * over_forward  # images per second are rounded


def test_starts_are_seconds_of_every_command(benchmark: Callable[..., None], tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    words = ["start", "--device", "cpu", "--rounds", "1", "--out", str(out)]
    benchmark(*words)
    rows = dict(line.strip("| ").split(" | ") for line in out.read_text().splitlines() if line.startswith("| "))
    assert float(rows["`import tta`"]) < float(rows["`import torch`"])
    assert float(rows["`tta --help`"]) > float(rows["`python -c pass`"])


def test_the_plain_script_is_tent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    speed = importlib.import_module("step_speed")
    shape, left = speed.Shape(32, 8, 10), []

    class Loader:
        def __init__(self, images: Any, batch: int, shuffle: bool) -> None:
            samples = [images[n] for n in range(len(images))]
            self.batches = torch.stack([image for image, _ in samples]).split(batch)

        def __iter__(self) -> Any:
            return iter([(images, torch.zeros(len(images))) for images in self.batches])

    class Remembered(torch.optim.SGD):
        def __init__(self, parameters: Any, lr: float) -> None:
            left.extend(parameters)
            super().__init__(left, lr)

    monkeypatch.setattr(speed, "LR", 1.0)
    monkeypatch.setattr(speed, "DataLoader", Loader)
    ours = speed.tent(shape, torch.device("cpu"))
    for images in Loader(speed.Images(*shape.arrays(2)), 8, False).batches:
        ours(images)
    monkeypatch.setattr(torch.optim, "SGD", Remembered)
    speed.plain_run(shape, 2, torch.device("cpu"))
    adapted = [p for p in ours.backbone.parameters() if p.requires_grad]
    assert len(adapted) == len(left) > 0
    for parameter, plain in zip(adapted, left, strict=True):
        torch.testing.assert_close(parameter, plain, rtol=1e-3, atol=1e-4)
    assert any((p - p.round()).abs().max() > 1e-3 for p in left)  # away from ones and zeros


def test_streams_are_images_per_second_beside_the_official_loops(
    benchmark: Callable[..., None], tmp_path: Path
) -> None:
    out = tmp_path / "table.md"
    for number in range(3):
        file = tmp_path / "photos" / f"class{number}" / "a.JPEG"
        file.parent.mkdir(parents=True)
        Image.new("RGB", (224, 224), (number, 50, 100)).save(file)
    words = ["stream", "--device", "cpu", "--rounds", "1", "--images", "8", "--batch", "4", "--workers", "0"]
    words += ["--root", str(tmp_path / "photos"), "--out", str(out)]
    benchmark(*words)
    rows = [line.strip("| ").split(" | ") for line in out.read_text().splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == [
        *("ImageFolder and DataLoader", "ours", "ours, cached", "ours, cached, floats without arithmetic"),
        *("ImageFolder and DataLoader, as bytes", "ours, as bytes", "ours, cached, as bytes"),
        *("TensorDataset and DataLoader", "ours, of an array"),
    ]
    base = 1.0
    for name, speed, ratio in rows[2:]:
        base = float(speed) if "DataLoader" in name else base
        assert abs(float(ratio) - float(speed) / base) < 0.02 + 0.02 * float(ratio)
    assert "--root photos" in out.read_text()
    assert str(tmp_path) not in out.read_text().replace(f"--out {out}", "")


def test_sweeps_are_seconds_beside_commands_of_their_own(
    benchmark: Callable[..., None], files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "tta"]
        assert (options.pop("capture_output"), options.pop("text"), options.pop("check")) == (True, True, False)
        process = forked(cli.main, *command[2:], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        return subprocess.CompletedProcess(command, process.wait(), *process.communicate())

    monkeypatch.setattr(importlib.import_module("sweep_speed"), "subprocess", SimpleNamespace(run=run))
    out = tmp_path / "table.md"
    sweep = ["method=source", "seed=0,1", *sweep_files.words(files), "stream.corruptions=fog"]
    sweep.remove("stream.corruptions=[fog,snow,frost]")
    sweep.remove("device=cpu")  # which the benchmark gives itself
    benchmark("sweep", "--device", "cpu", "--rounds", "1", "--out", str(out), "--words", *sweep)
    rows = [line.strip("| ").split(" | ") for line in out.read_text().splitlines() if line.startswith("| ")]
    assert rows[0][0] == "2 runs as"
    assert len(rows) == 7
    base = float(rows[2][1])
    for _, seconds, ratio in rows[2:]:
        assert abs(float(ratio) - base / float(seconds)) < 0.2 * float(ratio)
    assert f"`tta -m {shlex.join(sweep)}`" in out.read_text()


def test_comparisons_are_seconds_beside_a_program_that_only_reads(
    benchmark: Callable[..., None], tmp_path: Path
) -> None:
    out = tmp_path / "table.md"
    words = ["compare", "--device", "cpu", "--rounds", "1", "--runs", "3", "--out", str(out)]
    benchmark(*words)
    text = out.read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    plain = "json and pandas.read_csv, run after run"
    assert [row[0] for row in rows[2:]] == [plain, "tta-compare", "tta-compare --figures --html"]
    first = float(rows[2][1])
    for _, cell, speed, ratio in rows[2:]:  # each is rounded: seconds and ratios to hundredths, speeds to ones
        seconds = float(cell)
        assert 3 / (seconds + 0.005) - 0.5 <= float(speed) <= 3 / (seconds - 0.005) + 0.5
        least, most = (seconds - 0.005) / (first + 0.005), (seconds + 0.005) / (first - 0.005)
        assert least - 0.005 <= float(ratio) <= most + 0.005
    assert text.startswith("3 finished runs")
    assert "benchmark.py compare --device cpu" in text


def test_runs_that_are_made_are_like_those_of_the_program(
    tta_command: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    made = importlib.import_module("compare_speed")
    made.write_runs(tmp_path / "made", 3)
    sweep_files.make_files(tmp_path, n=10)
    tta_command("seed=0", f"runs_dir={tmp_path / 'real'}", "method=tent", *sweep_files.words(tmp_path))
    ours, theirs = find_runs([tmp_path / "made"]), find_runs([tmp_path / "real"])
    assert [run.label for run in ours] == ["bn_adapt", "source", "tent + adadem (lr 1e-05)"]
    assert len({run.benchmark for run in ours}) == 1
    (run,), like = theirs, ours[-1]
    assert list(like.summary) == list(run.summary)
    assert list(like.summary["domains"][0]) == list(run.summary["domains"][0])
    assert set(like.summary["config"]["method"]) == set(run.summary["config"]["method"])
    assert {file.name for file in like.path.iterdir()} == {file.name for file in run.path.iterdir()}
    for table in ("batches.csv", "classes.csv", "domains.csv"):
        filled = [[key for key, value in sweep_files.rows(of.path / table)[0].items() if value] for of in (like, run)]
        assert filled[0] == filled[1]
    assert len(sweep_files.rows(like.path / "batches.csv")) == 15 * 79

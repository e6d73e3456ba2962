"""Each benchmark runs on a tiny setting, and its table holds what was timed."""

from __future__ import annotations

import functools
import itertools
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from helpers import sweep_files
from helpers.scripts import load_script
from tta.compare import find_runs

benchmark, compare_speed, corruption_speed, curve_speed, method_speed, start_speed, step_speed, sweep_speed, timing = (
    load_script(name)
    for name in (
        *("benchmark", "compare_speed", "corruption_speed", "curve_speed", "method_speed", "start_speed"),
        *("step_speed", "sweep_speed", "timing"),
    )
)
CPU = torch.device("cpu")
TINY = step_speed.Shape(32, 4, 10)
Rows = list[list[str]]


@pytest.fixture
def table(call: Callable[..., None], tmp_path: Path) -> Callable[..., Rows]:
    """Run a benchmark for one round, and give the cells of its table, whose file says the command."""

    def table(*words: object) -> Rows:
        out = tmp_path / "table.md"
        call(benchmark, *words, "--device", "cpu", "--rounds", 1, "--out", out)
        text = out.read_text()
        assert f"benchmark.py {words[0]} " in text
        rows = [re.split(r" *\| *", line.strip("| ")) for line in text.splitlines() if line.startswith("| ")]
        return [row for row in rows if row[0] != "---"]

    return table


@pytest.fixture
def known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call each candidate once, and say that the first took 1 s, the second 2 s, and so on over all of a table."""
    count = itertools.count(1)

    def known(candidates: Mapping[str, Callable[[], object]], *_: object, **__: object) -> dict[str, float]:
        for candidate in candidates.values():
            candidate()
        return {name: float(next(count)) for name in candidates}

    for module in (benchmark, corruption_speed, curve_speed, step_speed):
        monkeypatch.setattr(module, "medians", known)


class Here:
    """In the place of a process of its own."""

    def __init__(self, *_: object) -> None: ...

    def __call__(self, function: Callable[..., float], *arguments: object) -> tuple[float, float]:
        return function(*arguments), 2.0**20

    def close(self) -> None: ...


def test_medians__take_turns_after_a_warm_up() -> None:
    now, called = 0.0, ""

    def candidate(name: str, *seconds: float) -> Callable[[], None]:
        left = iter(seconds)

        def run() -> None:
            nonlocal now, called
            now += next(left)
            called += name

        return run

    candidates = {"a": candidate("a", 9, 1, 5, 2), "b": candidate("b", 9, 3, 3, 4)}
    assert timing.medians(candidates, CPU, rounds=3, warm_up=1, clock=lambda: now) == {"a": 2, "b": 3}
    assert called == "abababab"


@pytest.mark.usefixtures("known_times")
class TestTables:
    def test_objectives__multiples_of_em(self, table: Callable[..., Rows]) -> None:
        head, *rows = table("objectives", "--shapes", "4x5", "8x3")
        assert head[-2:] == ["4 x 5", "8 x 3"]
        (em, *first), *others = rows
        n = len(rows)
        assert (em, *first) == ("EM", "1000.000 ms", f"{1000 * (n + 1)}.000 ms")
        assert {"CADF", "AdaDEM", "COME", "SLR"} < {row[0] for row in others}
        for place, (_, *cells) in enumerate(others, 2):
            assert cells == [f"{place:.2f}", f"{(n + place) / (n + 1):.2f}"]

    def test_methods__multiples_of_a_forward_pass(
        self, table: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(benchmark, "peak", lambda work, name: len(name) * 2**20)
        words = ["--model", "resnet10t", "--batch", 2, "--size", 32, "--methods", "source", "tent"]
        _, *rows = table("methods", *words)
        assert rows == [
            ["forward pass", "1000.0 ms", "7 MiB"],
            ["source", "2.00", f"{6 / 7:.2f}"],
            ["tent", "3.00", f"{4 / 7:.2f}"],
        ]

    def test_corruptions__images_per_second_and_means(self, table: Callable[..., Rows]) -> None:
        words = ["--batch", 4, "--scales", 32, "--corruptions", "fog", "contrast"]
        _, *rows = table("corruptions", *words)
        # Ours are 4 images in 1 and in 3 s, the recipe's are 2 in 2 and in 4 s.
        assert rows == [
            ["fog", "4", "1", "4.0"],
            ["contrast", "1", "0", f"{4 / 3 / 0.5:.1f}"],
            ["geometric mean", "", "", f"{(4 * 8 / 3) ** 0.5:.1f}"],
            ["arithmetic mean", "", "", f"{(4 + 8 / 3) / 2:.1f}"],
        ]

    def test_step__ratios_of_its_parts(self, table: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(step_speed, "SHAPES", {"tiny": TINY})
        monkeypatch.setattr(step_speed, "Elsewhere", Here)
        monkeypatch.setattr(step_speed, "matrix_product", functools.partial(step_speed.matrix_product, n=512))
        head, *rows = table("step", "--batches", 1, "--sizes", 32, "--precisions", "fp32")
        assert head == ["tiny"]
        cells = dict(rows)
        assert re.fullmatch(r"\d+\.\d\d s, 1 MiB", cells["run, plain script (fp32)"])
        assert cells["run, ours, fp32"].endswith("1.00 of the memory")
        assert cells["of a run, outside its steps"].endswith("%")
        # Forward pass, EM and AdaDEM took 1, 2 and 3 s, a matrix product 4.
        assert cells["step over forward pass, fp32"] == "2.00"
        assert cells["AdaDEM's step over EM's, fp32"] == "1.500"
        flops = step_speed.step_flops(TINY)
        share = cells["step's FLOP/s over those of a matrix product, fp32"].split()[0]
        assert share == f"{flops / 2 / (2 * 512**3 / 4):.2f}"

    def test_curves__a_row_for_each_value(self, table: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(curve_speed, "LARGE", TINY)
        values = ["--batches", 2, 4, "--classes", 5, "--pixels", 32]
        monkeypatch.setattr(curve_speed, "SMALL", TINY)
        rows = table("curves", *values)
        assert [row[0] for row in rows] == ["batch", "2", "4", "classes", "5", "size", "32"]
        assert rows[1] == ["2", "2", "1", "1", "2.00", "1.500"]  # two images in 1, 2 and 3 s
        assert rows[2] == ["4", "1", "1", "1", f"{5 / 4:.2f}", f"{6 / 5:.3f}"]

    def test_stream__ratios_to_the_official_loop(self, table: Callable[..., Rows], tmp_path: Path) -> None:
        for number in range(3):
            file = tmp_path / "photos" / f"class{number}" / "a.JPEG"
            file.parent.mkdir(parents=True)
            Image.new("RGB", (224, 224), (number, 50, 100)).save(file)
        words = ["--images", 8, "--batch", 4, "--workers", 0, "--root", tmp_path / "photos"]
        _, *rows = table("stream", *words)
        first = 1
        for place, (name, speed, ratio) in enumerate(rows, 1):
            first = place if "DataLoader" in name else first
            assert (speed, ratio) == (f"{8 / place:.0f}", f"{first / place:.2f}")
        assert sum("DataLoader" in name for name, *_ in rows) == 3
        assert str(tmp_path / "photos") not in (tmp_path / "table.md").read_text()

    def test_sweep__ratios_to_single_commands(
        self, table: Callable[..., Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        called: list[list[str]] = []

        def run(command: list[str], **_: object) -> SimpleNamespace:
            called.append([word for word in command[3:] if not word.startswith("runs_dir=")])
            return SimpleNamespace(returncode=0)

        monkeypatch.setattr(sweep_speed, "subprocess", SimpleNamespace(run=run))
        sweep = ["method=source,tent", "seed=0,1"]
        head, *rows = table("sweep", "--words", *sweep)
        assert head[0].startswith("4 ")
        assert [row[1:] for row in rows] == [[f"{n}.0", f"{1 / n:.2f}"] for n in range(1, 3)]
        assert shlex.join(sweep) in (tmp_path / "table.md").read_text()
        jobs = [[f"method={m}", f"seed={n}", "device=cpu"] for m in ("source", "tent") for n in (0, 1)]
        _, *alone = called[:5]  # the first only warms up
        assert alone == jobs
        assert called[5:] == [["-m", *sweep, "device=cpu"]]

    def test_compare__runs_per_second(self, table: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch) -> None:
        called: list[list[str]] = []
        calls = SimpleNamespace(run=lambda command, **_: called.append(command), DEVNULL=None)
        monkeypatch.setattr(compare_speed, "subprocess", calls)
        monkeypatch.setattr(compare_speed, "BENCHMARK", ("fog", "snow"))
        _, *rows = table("compare", "--runs", 2)
        assert [row[1:] for row in rows] == [["1.00", "2", "1.00"], ["2.00", "1", "2.00"], ["3.00", "1", "3.00"]]
        assert [command[4:] for command in called] == [[], [], ["--figures", "--html"]]


def test_profile__tells_kinds_of_work_apart(table: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_speed, "SHAPES", {"tiny": step_speed.Shape(32, 50, 10)})
    _, *rows = table("profile", "--sizes", 32, "--precisions", "fp32")
    forward, step, more = (
        dict(zip([row[0] for row in rows], map(float, column), strict=True))
        for column in list(zip(*rows, strict=True))[1:]
    )
    for kind in ("convolution, backward", "BatchNorm, backward"):
        assert forward[kind] == 0 < step[kind]
    for kind in ("convolution", "BatchNorm"):
        assert forward[kind] > 0 < step[kind]
    assert 2 * step["all"] == pytest.approx(sum(step.values()), abs=0.5)  # cells are rounded to tenths
    assert more["all"] == pytest.approx(step["all"] / forward["all"] - 1, abs=0.02)


def test_plain_script__is_tent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What our runs are compared with takes the same steps."""
    shape, left = step_speed.Shape(32, 8, 10), []

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

    monkeypatch.setattr(step_speed, "LR", 1.0)
    monkeypatch.setattr(step_speed, "DataLoader", Loader)
    ours = step_speed.tent(shape, CPU)
    for images in Loader(step_speed.Images(*shape.arrays(2)), 8, False).batches:
        ours(images)
    monkeypatch.setattr(torch.optim, "SGD", Remembered)
    step_speed.plain_run(shape, 2, CPU)
    adapted = [p for p in ours.backbone.parameters() if p.requires_grad]
    assert len(adapted) == len(left) > 0
    for parameter, plain in zip(adapted, left, strict=True):
        torch.testing.assert_close(parameter, plain, rtol=1e-3, atol=1e-4)
    assert any((p - p.round()).abs().max() > 1e-3 for p in left)  # away from ones and zeros


def test_written_runs__are_like_the_programs(
    tta_command: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that are made to be compared have the keys, files and columns of a run that was run."""
    monkeypatch.setattr(compare_speed, "BENCHMARK", ("fog", "snow"))
    compare_speed.write_runs(tmp_path / "made", 3)
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
    for name in ("batches.csv", "classes.csv", "domains.csv"):
        filled = [[key for key, value in sweep_files.rows(of.path / name)[0].items() if value] for of in (like, run)]
        assert filled[0] == filled[1]
    assert len(sweep_files.rows(like.path / "batches.csv")) == 2 * 79


@pytest.mark.slow
class TestProcesses:
    """What the tables above take from processes of its own."""

    def test_start__every_command_starts(self) -> None:
        starts = start_speed.starts()
        assert {"import tta", "tta --help"} <= starts.keys()
        for start in starts.values():
            start()

    def test_compare__every_way_reads_the_runs(self, tmp_path: Path) -> None:
        compare_speed.write_runs(tmp_path, 3)
        for read in compare_speed.ways_to_read(tmp_path).values():
            read()
        assert {"comparison.md", "comparison.html", "comparison.png"} <= {file.name for file in tmp_path.iterdir()}

    def test_sweep__every_way_runs(self, tta_in_process: Callable[[ModuleType], None], files: Path) -> None:
        tta_in_process(sweep_speed)
        sweep = ["method=source", "seed=0,1", *sweep_files.words(files), "stream.corruptions=fog"]
        sweep.remove("stream.corruptions=[fog,snow,frost]")
        sweep.remove("device=cpu")  # which the benchmark gives itself
        count, ways = sweep_speed.ways_to_run(sweep, "cpu", 1)
        assert count == 2
        for run in ways.values():
            run()

    def test_elsewhere__measures_memory(self) -> None:
        process = step_speed.Elsewhere(True, 1)
        assert process(abs, -3.0)[0] == 3
        assert process(abs, -3.0)[1] > 2**20
        process.close()

    def test_peak__is_beyond_what_is_at_rest(self) -> None:
        work = method_speed.Workload("resnet10t", 8, 64, CPU, 1)
        assert 2**20 < method_speed.peak(work, "tent") < 2**30

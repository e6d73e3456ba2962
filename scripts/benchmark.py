"""Time what has to be fast, as ratios against a baseline timed in the same run.

    python scripts/benchmark.py objectives --out docs/benchmark-objectives-cpu.md

Times are medians over rounds in which every candidate takes its turn, so that other work on the machine meets all of
them alike. The table says the command, versions and device.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from tta.devices import choose_device, describe_device
from tta.objectives import CADF, COME, DEM, EM, SLR, AdaDEM, Objective
from tta.paths import atomic_file

SHAPES = ("64x10", "64x1000", "512x1000", "64x21841")


def main() -> None:
    """Run a benchmark and show its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["objectives"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="NxC", help="of the logits")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    lines = objectives(device, options.rounds, [tuple(map(int, shape.split("x"))) for shape in options.shapes])
    lines += ["", f"`{shlex.join(['python', *sys.argv])}`; {datetime.now(UTC):%Y-%m-%d}; torch {torch.__version__}; "]
    lines[-1] += f"{describe_device(device)}; median of {options.rounds} rounds."
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        with atomic_file(options.out) as file:
            file.write_text(text)


def objectives(device: torch.device, rounds: int, shapes: Sequence[tuple[int, ...]]) -> list[str]:
    """Forward and backward pass of each objective, as multiples of that of EM."""
    candidates: dict[str, Callable[[], Objective]] = {
        "EM": EM,
        "CADF": CADF,
        "DEM(1.1, 1.2)": lambda: DEM(1.1, 1.2),
        "AdaDEM": AdaDEM,
        "AdaDEM-Norm": lambda: AdaDEM(calibrate=False),
        "AdaDEM-MEC": lambda: AdaDEM(normalize=False),
        "AdaDEM, a loop over the classes": LoopAdaDEM,
        "COME": COME,
        "SLR": SLR,
    }
    columns = {}
    for shape in shapes:
        z = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        steps = {name: _step(make().to(device), z) for name, make in candidates.items()}
        columns[shape] = medians(steps, device, rounds)
    rows = {"": [f"{n} x {c}" for n, c in shapes], "---": ["---:"] * len(shapes)}
    rows["EM"] = [f"{1e3 * column['EM']:.3f} ms" for column in columns.values()]
    for name in list(candidates)[1:]:
        rows[name] = [f"{column[name] / column['EM']:.2f}" for column in columns.values()]
    title = "Forward and backward pass on logits N x C, as multiples of EM's."
    return [title, "", *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())]


def _step(objective: Objective, z: Tensor) -> Callable[[], None]:
    def step() -> None:
        logits = z.detach().requires_grad_()
        objective(logits).mean().backward()

    return step


class LoopAdaDEM(AdaDEM):
    """AdaDEM whose table is updated class by class, as the paper writes it down: to compare with."""

    def _calibrator(self, p: Tensor) -> Tensor:
        self._allocate(p)
        labels = p.argmax(-1)
        for label in labels.unique():
            self.table[label].lerp_(p[labels == label].mean(0), self.momentum)
        return self.table[labels]


def medians(candidates: Mapping[str, Callable[[], None]], device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds of each candidate."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(-3, rounds):  # the first three only warm up
        for name, candidate in candidates.items():
            wait()
            began = time.perf_counter()
            candidate()
            wait()
            if number >= 0:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main()

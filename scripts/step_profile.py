"""Where the time of a step goes, and that of a forward pass, kind of work by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from step_speed import Shape, tent
from torch.profiler import ProfilerActivity, profile

from tta.utils.devices import choose_precision, to_device

KINDS = {
    "convolution, backward": ("convolution_backward",),
    "convolution": ("convolution", "addmm", "aten::mm"),
    "BatchNorm, backward": ("batch_norm_backward",),
    "BatchNorm": ("batch_norm",),
    "ReLU and pooling, backward": ("threshold_backward", "pool2d_backward", "pool2d_with_indices_backward"),
    "ReLU and pooling": ("clamp_min", "relu", "pool2d"),
    "sums and copies": ("aten::add", "copy_", "aten::fill_", "aten::zero_"),
}
"""What the names of operations hold; the first kind that one fits is its own."""

REST = "the rest"


def kind_of(operation: str) -> str:
    """Say which kind of work an operation of torch's is."""
    return next((kind for kind, parts in KINDS.items() if any(part in operation for part in parts)), REST)


def by_kind(function: Callable[[], object], device: torch.device, rounds: int) -> Counter[str]:
    """Milliseconds of each kind of work in one call, the mean over so many, after one that only warms up."""
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device.type == "cuda")]
    function()
    with profile(activities=activities, acc_events=True) as profiled:  # or torch warns that only this cycle counts
        for _ in range(rounds):
            function()
    times: Counter[str] = Counter()
    for event in profiled.key_averages():
        spent = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        times[kind_of(event.key)] += spent / 1e3 / rounds
    return times


def rows(shape: Shape, device: torch.device, precision: str, rounds: int) -> list[tuple[str, ...]]:
    """Milliseconds of a frozen forward pass in eval mode and of a step of Tent, and what the step takes more."""
    computes_in = choose_precision(precision, device)
    backbone, method = to_device(shape.backbone(), device), tent(shape, device)
    images = torch.rand(shape.batch, 3, shape.size, shape.size, device=device)

    def forward() -> None:
        with torch.no_grad(), computes_in.autocast(device):
            backbone(images)

    def step() -> None:
        with computes_in.autocast(device):
            method(images)

    of_forward, of_step = (by_kind(function, device, rounds) for function in (forward, step))
    whole = of_forward.total()
    kinds = [*KINDS, REST]
    cells = [(kind, of_forward[kind], of_step[kind]) for kind in kinds]
    cells.append(("all", whole, of_step.total()))
    return [(kind, f"{a:.1f}", f"{b:.1f}", f"{(b - a) / whole:+.2f}") for kind, a, b in cells]

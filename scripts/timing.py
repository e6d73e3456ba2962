"""Seconds of candidates that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def medians(
    candidates: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    warm_up: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each candidate, after as many rounds that only warm up."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(-warm_up, rounds):
        for name, candidate in candidates.items():
            wait()
            began = clock()
            candidate()
            wait()
            if number >= 0:
                seconds[name].append(clock() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}

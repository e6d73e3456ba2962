"""How the speed of a step grows: with the batch, the classes and the size of the images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from step_speed import SHAPES, Shape, tent
from timing import medians
from torch import Tensor, nn

from tta.objectives import AdaDEM
from tta.utils.devices import to_device

SMALL, LARGE = SHAPES.values()
FEW = 8
"""Images in a batch of large ones."""


def curves(
    values: Mapping[str, Sequence[int]], device: torch.device, rounds: int
) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Give each curve: what it says, and the rows of its table, in images per second.

    Args:
        values: of ``batches``, ``classes`` and ``pixels``.
        device: of the steps.
        rounds: of which a time is the median.
    """
    small, large = SHAPES
    of_steps = functools.partial(_of_steps, device=device, rounds=rounds)
    yield f"Batch size ({small}, but for the batch)", of_steps(SMALL, "batch", values["batches"])
    yield f"Classes ({small}, but for the classes)", of_steps(SMALL, "classes", values["classes"])
    shape = dataclasses.replace(LARGE, batch=FEW)
    yield f"Pixels ({large}, but for the size, and batch {FEW})", of_steps(shape, "size", values["pixels"])


def _of_steps(
    shape: Shape, what: str, values: Sequence[int], device: torch.device, rounds: int
) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (what, "forward pass", "Tent, EM", "Tent, AdaDEM", "step over forward pass", "AdaDEM over EM")
    ]
    for value in values:
        one = dataclasses.replace(shape, **{what: value})
        images = torch.rand(one.batch, 3, one.size, one.size, device=device)
        backbone: nn.Module = to_device(one.backbone(), device)
        steps: dict[str, Callable[[Tensor], object]] = {
            "forward": torch.no_grad()(backbone),
            "EM": tent(one, device),
            "AdaDEM": tent(one, device, AdaDEM()),
        }
        candidates = {name: functools.partial(step, images) for name, step in steps.items()}
        forward, em, adadem = medians(candidates, device, rounds).values()
        speeds = (f"{one.batch / seconds:.0f}" for seconds in (forward, em, adadem))
        rows.append((str(value), *speeds, f"{em / forward:.2f}", f"{adadem / em:.3f}"))
    return rows

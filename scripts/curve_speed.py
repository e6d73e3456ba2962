"""How the speed of a step grows: with the batch, the classes, the size of the images, and runs that share a pass."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from step_speed import LR, SHAPES, Shape, tent
from timing import medians
from torch import Tensor, nn

from tta.devices import place
from tta.methods import Tent
from tta.objectives import EM, AdaDEM
from tta.replicas.norms import Blocks, Interleaved
from tta.replicas.passes import Replicas, share_frozen

SMALL, LARGE = SHAPES.values()
PER_REPLICA = 32
"""Images of each run in a shared pass."""
FEW = 8
"""Images in a batch of large ones."""


def curves(
    values: Mapping[str, Sequence[int]], device: torch.device, rounds: int
) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Give each curve: what it says, and the rows of its table, in images per second.

    Args:
        values: of ``batches``, ``classes``, ``pixels`` and ``replicas``.
        device: of the steps.
        rounds: of which a time is the median.
    """
    small, large = SHAPES
    of_steps = functools.partial(_of_steps, device=device, rounds=rounds)
    yield f"Batch size ({small}, but for the batch)", of_steps(SMALL, "batch", values["batches"])
    yield f"Classes ({small}, but for the classes)", of_steps(SMALL, "classes", values["classes"])
    shape = dataclasses.replace(LARGE, batch=FEW)
    yield f"Pixels ({large}, but for the size, and batch {FEW})", of_steps(shape, "size", values["pixels"])
    shape = dataclasses.replace(SMALL, batch=PER_REPLICA)
    yield (
        f"Runs in one pass ({small}, but with {PER_REPLICA} images of each run)",
        _of_replicas(shape, values["replicas"], device, rounds),
    )


def _of_steps(
    shape: Shape, what: str, values: Sequence[int], device: torch.device, rounds: int
) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (what, "forward pass", "Tent, EM", "Tent, AdaDEM", "step over forward pass", "AdaDEM over EM")
    ]
    for value in values:
        one = dataclasses.replace(shape, **{what: value})
        images = torch.rand(one.batch, 3, one.size, one.size, device=device)
        backbone: nn.Module = place(one.backbone(), device)
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


def _of_replicas(shape: Shape, counts: Sequence[int], device: torch.device, rounds: int) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("runs", "one after another", "in blocks", "interleaved", "blocks, ratio", "interleaved, ratio")
    ]
    for count in counts:
        batches = [torch.rand(shape.batch, 3, shape.size, shape.size, device=device) for _ in range(count)]
        ways = {"turns": functools.partial(_in_turns, _runs(shape, device, count), batches)}
        for layout in (Blocks, Interleaved):
            replicas = Replicas(_runs(shape, device, count), layout)
            ways[layout.__name__] = functools.partial(_together, replicas, batches)
        turns, blocks, interleaved = medians(ways, device, rounds).values()
        speeds = (f"{count * shape.batch / seconds:.0f}" for seconds in (turns, blocks, interleaved))
        rows.append((str(count), *speeds, f"{turns / blocks:.2f}", f"{turns / interleaved:.2f}"))
    return rows


def _runs(shape: Shape, device: torch.device, count: int) -> list[Tent]:
    """Make a Tent for each run, which share what is frozen, as those of a sweep do."""
    backbone = place(shape.backbone(), device)
    sgd = functools.partial(torch.optim.SGD, lr=LR)
    methods = [Tent(backbone, EM(), sgd).to(device) for _ in range(count)]
    for method in methods:
        share_frozen(method, backbone)
    return methods


def _in_turns(methods: Sequence[Tent], batches: Sequence[Tensor]) -> None:
    for method, images in zip(methods, batches, strict=True):
        method(images)


def _together(replicas: Replicas, batches: Sequence[Tensor]) -> None:
    replicas.learn(replicas.forward(batches))

"""Objectives of several replicas: those of one kind take the logits of all at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tta.objectives import Objective

PLAIN = set(vars(nn.Module()))
SETTINGS = (int, float, str, bool, type(None))


def each_of(objectives: Sequence[Objective], logits: Sequence[Tensor]) -> list[Tensor | Exception]:
    """Give each replica's losses (N,) for its logits (N, C), or what went wrong with it.

    Objectives of the same kind with the same settings are called once for all of their replicas, as leading dimensions
    of logits are independent of each other. Those with a state of their own are, if their states can be stacked.
    """
    kinds: dict[Any, list[int]] = {}
    for number, objective in enumerate(objectives):
        kinds.setdefault(_kind(objective) or number, []).append(number)
    found: dict[int, Tensor | Exception] = {}
    for numbers in kinds.values():
        few, theirs = [objectives[n] for n in numbers], [logits[n] for n in numbers]
        together = len(numbers) > 1 and _stackable(few)
        losses = _together(few, theirs) if together else map(_by_itself, few, theirs)
        found.update(zip(numbers, losses, strict=True))
    return [found[number] for number in range(len(objectives))]


def _by_itself(objective: Objective, logits: Tensor) -> Tensor | Exception:
    try:
        return objective(logits)
    except Exception as error:  # it is raised in the replica that it is of
        return error


def _kind(objective: Objective) -> Any:
    """What objectives agree in that compute the same; ``None`` if that cannot be told."""
    settings = {name: value for name, value in vars(objective).items() if name not in PLAIN}
    if (
        any(objective.children())
        or any(objective.parameters())
        or not all(isinstance(value, SETTINGS) for value in settings.values())
    ):
        return None
    return type(objective), tuple(sorted((name, repr(value)) for name, value in settings.items()))


def _stackable(objectives: Sequence[Objective]) -> bool:
    """Whether their states are of one shape, and may be stacked."""
    states = {tuple((name, buffer.shape) for name, buffer in o.named_buffers()) for o in objectives}
    return len(states) == 1 and (objectives[0].stacks or not any(states))


def _together(objectives: Sequence[Objective], logits: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Losses of all, from one objective that has the states of all; theirs follow it."""
    one = copy.deepcopy(objectives[0])
    for name, buffer in objectives[0].named_buffers():
        if buffer.numel():
            one.register_buffer(name, torch.stack([objective.get_buffer(name) for objective in objectives]))
    losses = one(torch.stack(list(logits)))
    for name, buffer in one.named_buffers():
        # One that is empty still belongs to none of them.
        for objective, own in zip(objectives, buffer, strict=True) if buffer.numel() else ():
            if objective.get_buffer(name).numel():
                objective.get_buffer(name).copy_(own)
            else:
                objective.register_buffer(name, own.clone())
    return losses.unbind()

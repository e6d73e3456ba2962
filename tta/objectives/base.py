"""What every objective is: a loss for each sample, from logits alone."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from tta.utils.validation import ComponentError


def check_logits(value: Any) -> Tensor:
    """Return ``value``, what a backbone gave, if it is a tensor, else raise ``TypeError`` that says what to do."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"a backbone must give a tensor of logits (N, C), it gave {type(value).__name__}: wrap it in a module that "
            "returns the logits alone"
        )
    return value


class Objective(nn.Module, ABC):
    """A loss on logits alone. State, if any, lives in buffers; ``reset`` forgets it.

    Logits are finite, of any floating dtype; bfloat16 and float16 are computed in float32, under autocast too. Every
    operation has a shape that depends on the shape of the logits alone, so that a
    step compiles as one graph.
    """

    def forward(self, logits: Tensor) -> Tensor:
        """Map logits (..., N, C) to losses (..., N), in nats, float32 (float64 for logits of float64).

        Raises:
            TypeError: for what is no tensor.
            ComponentError: if ``loss`` gives something else than a loss for each sample.
        """
        logits = check_logits(logits)
        with torch.autocast(logits.device.type, enabled=False):
            losses = self.loss(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        if not isinstance(losses, Tensor) or losses.shape != logits.shape[:-1]:
            got = f"a tensor {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            raise ComponentError(
                f"{type(self).__name__}.loss must return a loss for each sample, {tuple(logits.shape[:-1])} for logits "
                f"{tuple(logits.shape)}, it returned {got}: leave the mean to who asks for the losses"
            )
        return losses

    @abstractmethod
    def loss(self, z: Tensor) -> Tensor:
        """Map logits (..., N, C), float32 or float64, to losses (..., N)."""

    def reset(self) -> None:
        """Forget everything learnt from earlier batches."""


def clone_objective(objective: Objective) -> Objective:
    """Copy an objective, so that what it learns is one method's own.

    Raises:
        TypeError: for a class, of which no objective has been made.
    """
    if isinstance(objective, type):
        raise TypeError(f"the objective is a class: give an object of it, {objective.__name__}()")
    return copy.deepcopy(objective)

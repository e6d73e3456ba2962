"""Means over selected samples, the move of sharpness-aware minimisation, and exponential moving averages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def selected_mean(losses: Tensor, selected: Tensor) -> Tensor:
    """Mean over the selected samples; 0, with a gradient of 0, if there are none.

    Args:
        losses: (N,).
        selected: (N,), boolean.
    """
    return torch.where(selected, losses, 0).sum() / selected.sum().clamp(min=1)


@contextmanager
def sam_perturbation(parameters: Iterable[Tensor], rho: float) -> Iterator[None]:
    """Within the block, parameters stand where the loss is larger: up their gradients by a length of ``rho``.

    The gradients of all parameters together are one vector, ``g``, and the move is ``rho g / (|g| + 1e-12)``
    (sharpness-aware minimisation); none where all gradients are zero. Afterwards the parameters are exactly, to the
    last bit, what they were; their gradients are those of before until somebody clears them.
    """
    moved: list[Tensor] = [parameter for parameter in parameters if parameter.grad is not None]
    with torch.no_grad():
        before = [parameter.clone() for parameter in moved]
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_add_(moved, list(torch._foreach_mul(gradients, rho / (length + 1e-12))))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(moved, before)


@torch.no_grad()
def ema_update_(average: Iterable[Tensor], new: Iterable[Tensor], share: float) -> None:
    """Move each tensor of an exponential moving average towards the new one, in place: ``share`` of the new one."""
    torch._foreach_lerp_(list(average), list(new), share)

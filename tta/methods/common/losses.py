"""Losses and probabilities from logits, in full precision whatever the network computes in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def upcast(values: Tensor) -> Tensor:
    """Give the same values in float32, or in float64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def probabilities(logits: Tensor) -> Tensor:
    """Softmax of logits (..., C), in [0, 1], float32 (float64 for logits of float64)."""
    return upcast(logits).softmax(-1)


def consistency(logits: Tensor, target: Tensor, symmetric: bool = False) -> Tensor:
    """Cross-entropy ``-sum_i q_i log p_i`` of a prediction ``p`` with another one, ``q``, in the place of the label.

    Args:
        logits: of ``p``, (N, C).
        target: logits of ``q``, (N, C); gradients flow through them too.
        symmetric: the mean of that and the same with ``p`` and ``q`` exchanged.

    Returns:
        (N,), in nats, float32 (float64 for logits of float64).
    """
    z, target = upcast(logits), upcast(target)
    one_way = cross_entropy(z, target.softmax(-1), reduction="none")
    return (one_way + cross_entropy(target, z.softmax(-1), reduction="none")) / 2 if symmetric else one_way


def selected_mean(losses: Tensor, selected: Tensor) -> Tensor:
    """Mean over the selected samples; 0, with a gradient of 0, if there are none.

    Args:
        losses: (N,).
        selected: (N,), boolean.
    """
    return torch.where(selected, losses, 0).sum() / selected.sum().clamp(min=1)

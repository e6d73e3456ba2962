"""Logits, and what is made of them, in full precision whatever the network computes in."""

from __future__ import annotations

import torch
from torch import Tensor


def upcast(values: Tensor) -> Tensor:
    """Give the same values in float32, or in float64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def probabilities(logits: Tensor) -> Tensor:
    """Softmax of logits (..., C), in [0, 1], float32 (float64 for logits of float64)."""
    return upcast(logits).softmax(-1)

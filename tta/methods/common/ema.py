"""Exponential moving averages of parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def ema_update_(average: Iterable[Tensor], new: Iterable[Tensor], share: float) -> None:
    """Move each tensor of an exponential moving average towards the new one, in place: ``share`` of the new one."""
    torch._foreach_lerp_(list(average), list(new), share)

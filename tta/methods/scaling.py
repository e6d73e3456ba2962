"""Loss scaling: what keeps the gradients of half-precision passes apart from zero."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tta.methods.updates import apart, together


class LossScale(nn.Module):
    """A factor for the loss, as large as float16 bears it: halved at an overflow, doubled after a long time without.

    The smallest number of float16 is 6e-8, and gradients of a mean over a batch go below it; those of the loss times
    the factor do not. Where one of them is then above 65 504, the step is to be left out (``sound``). Algorithm and
    numbers are those of ``torch.amp.GradScaler`` (Micikevicius et al., "Mixed precision training", ICLR 2018), but
    what is decided stays on the device: nothing waits for it.
    """

    scale: Tensor  # (): the factor
    streak: Tensor  # (): gradients without an overflow since it changed
    sound: Tensor  # (): boolean, whether the last gradients were finite

    FIRST, GROWTH, INTERVAL = 2.0**16, 2.0, 2000

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(self.FIRST))
        self.register_buffer("streak", torch.tensor(0))
        self.register_buffer("sound", torch.tensor(True))

    @torch.no_grad()
    def unscale(self, gradients: Iterable[Tensor]) -> None:
        """Divide gradients by the factor, in place, all zero if any is not finite; then move the factor."""
        gradients = list(gradients)
        row = together(gradients) / self.scale
        self.sound.copy_(row.isfinite().all())
        torch._foreach_copy_(gradients, apart(torch.where(self.sound, row, 0), gradients))
        grows = self.sound & (self.streak + 1 == self.INTERVAL)
        self.streak.copy_(torch.where(self.sound & ~grows, self.streak + 1, 0))
        factor = torch.where(grows, self.GROWTH, torch.where(self.sound, 1.0, 1 / self.GROWTH))
        self.scale.mul_(factor.to(self.scale.dtype))


def in_half(device: torch.device) -> bool:
    """Whether autocast computes in float16 now."""
    return torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) is torch.float16

"""Unsupervised objectives: logits of shape (..., N, C) to one loss per sample, (..., N), in nats.

No model, no optimizer and no labels, so that they serve in any training loop: ``loss = objective(logits).mean()``.
Formulas: Decoupled Entropy Minimization (arXiv:2511.03256).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Objective(nn.Module, ABC):
    """A loss on logits alone. State, if any, lives in buffers; ``reset`` forgets it."""

    @abstractmethod
    def forward(self, logits: Tensor) -> Tensor:
        """Map finite logits (..., N, C) of any floating dtype to float32 losses (..., N)."""

    def reset(self) -> None:
        """Forget everything learnt from earlier batches."""


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax over the last dimension, computed in at least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


class EM(Objective):
    """Entropy minimisation, ``H = -sum_i p_i log p_i`` (Tent, arXiv:2006.10726; eq. 1 of arXiv:2511.03256)."""

    def forward(self, logits: Tensor) -> Tensor:
        """Entropy of each prediction, in [0, ln C] nats."""
        log_p = log_probabilities(logits)
        return -(log_p.exp() * log_p).sum(-1)


class AdaDEM(Objective):
    """Adaptive decoupled entropy minimisation (arXiv:2511.03256, eq. 12): ``-sum_i (p_i - m_i) / delta * z_i``.

    ``delta``, the L1 norm of the reward ``-dT/dz`` of ``T = -sum_i p_i z_i``, keeps sure samples teaching. ``m``, the
    row of the marginal entropy calibrator (MEC) that belongs to the sample's pseudo-label, takes the place of the
    probability that EM subtracts; the rows are moving averages of the predictions, one for each pseudo-label, updated
    with the batch before they are used. No gradient flows through ``delta`` or ``m``.

    Leading dimensions of the logits are independent replicas, each with a table of its own.

    Args:
        momentum: share of the batch in a row's moving average (pi in the paper), in (0, 1].

    Raises:
        ValueError: if ``momentum`` is outside (0, 1], or logits come with another shape than the table's.
    """

    table: Tensor  # (..., C, C); row k is the mean prediction of samples with pseudo-label k

    def __init__(self, momentum: float = 0.1) -> None:
        super().__init__()
        if not 0 < momentum <= 1:
            raise ValueError(f"AdaDEM's momentum must be in (0, 1], got {momentum}")
        self.momentum = momentum
        # Sized by the first logits; empty means "every entry is 1/C".
        self.register_buffer("table", torch.empty(0))

    def reset(self) -> None:
        """Set every entry of MEC's table to 1/C again."""
        if self.table.numel():
            self.table.fill_(1 / self.table.shape[-1])

    def forward(self, logits: Tensor) -> Tensor:
        """Loss of each sample; the table takes in the batch first."""
        # The loss and the reward do not change when a constant is added to z, so the well-scaled log p serves as z.
        z = log_probabilities(logits)
        p = z.exp()
        with torch.no_grad():
            calibrator = self._calibrate(p)
            entropy = -(p * z).sum(-1, keepdim=True)
            delta = (p * (z + entropy + 1)).abs().sum(-1, keepdim=True)
        return -((p - calibrator) / delta * z).sum(-1)

    def _calibrate(self, p: Tensor) -> Tensor:
        """Update the table with predictions (..., N, C) and return the row of each sample, (..., N, C)."""
        self._allocate(p)
        label = p.argmax(-1)  # (..., N)
        same = label.unsqueeze(-1) == label.unsqueeze(-2)  # (..., N, N)
        weight = same.to(p.dtype)
        batch_mean = weight @ p / weight.sum(-1, keepdim=True)  # of the samples that share the pseudo-label
        index = label.unsqueeze(-1).expand_as(p)
        rows = torch.lerp(self.table.gather(-2, index), batch_mean, self.momentum)
        # Samples of one pseudo-label write the same row; taking the first one's makes them equal to the last bit, and
        # so the order of the writes, which CUDA leaves open, does not matter.
        first = weight.argmax(-1, keepdim=True).expand_as(p)
        rows = rows.gather(-2, first)
        self.table.scatter_(-2, index, rows)
        return rows

    def _allocate(self, p: Tensor) -> None:
        shape = (*p.shape[:-2], p.shape[-1], p.shape[-1])
        if not self.table.numel():
            self.table = p.new_full(shape, 1 / p.shape[-1])
        elif self.table.shape != shape:
            raise ValueError(
                f"AdaDEM's table has shape {tuple(self.table.shape)}, but logits of shape {tuple(p.shape)} need "
                f"{shape}: use one objective for each model"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A fresh object has no table yet: take the shape of the saved one.
        saved = state_dict.get(f"{prefix}table")
        if saved is not None and saved.shape != self.table.shape:
            self.table = torch.empty_like(saved, device=self.table.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

"""AdaDEM: decoupled entropy minimisation with a normalised reward and a marginal entropy calibrator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tta.objectives.base import Objective
from tta.utils.validation import check_int

# On a CPU, torch's vector_norm takes four times as long as the same sum of absolute values.
NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda reward: reward.abs().sum(-1),
    "l2": lambda reward: torch.linalg.vector_norm(reward, dim=-1),
    "linf": lambda reward: reward.abs().amax(-1),
}
REWARDS = ("cadf", "entropy")


class AdaDEM(Objective):
    """Adaptive decoupled entropy minimisation, ``-sum_i (p_i - alpha m_i) / delta z_i`` (arXiv:2511.03256, eq. 12).

    ``delta``, a norm of the reward ``-dT/dz``, keeps samples from counting the less the surer they are. ``m``, the row
    of the marginal entropy calibrator (MEC) that belongs to the sample's pseudo-label, takes the place of the
    probability that EM subtracts, and so works against classes that are easy to fall into. The rows are moving averages
    of the predictions, one for each pseudo-label, at 1/C in the beginning; they take in the batch before they are used.
    No gradient flows through ``delta`` or ``m``.

    All samples of logits (..., N, C) count as one batch.

    Args:
        normalize: divide by ``delta``; off gives AdaDEM-MEC (table 12).
        calibrate: subtract MEC; off gives AdaDEM-Norm, where ``p`` itself, without gradient, takes the place of ``m``.
            Both off has the gradient of EM.
        momentum: share of the batch in a row's moving average, in (0, 1] (pi in the paper, figure 12).
        alpha: weight of what is subtracted (figure 10).
        norm: ``l1``, ``l2`` or ``linf``, of the reward (figure 11).
        reward: what is normalised by: ``cadf``, the reward of T, or ``entropy``, that of H (AdaDEM-V, table 14; it
            fails, as the reward of H vanishes for sure samples, and is here to show it).
        num_classes: C; by default the table is made for the first logits. Give it if the first step must not
            allocate memory.

    Raises:
        ValueError: for a value out of range, or if logits come with another shape than the table's.
    """

    table: Tensor  # (C, C); row k is the mean prediction of samples with pseudo-label k

    def __init__(
        self,
        normalize: bool = True,
        calibrate: bool = True,
        momentum: float = 0.1,
        alpha: float = 1.0,
        norm: str = "l1",
        reward: str = "cadf",
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < momentum <= 1:
            raise ValueError(f"AdaDEM's momentum must be in (0, 1], got {momentum}")
        if not 0 <= alpha < math.inf:
            raise ValueError(f"AdaDEM's alpha must be at least 0, got {alpha}")
        if norm not in NORMS:
            raise ValueError(f"AdaDEM's norm must be one of {', '.join(NORMS)}; got {norm!r}")
        if reward not in REWARDS:
            raise ValueError(f"AdaDEM's reward must be one of {', '.join(REWARDS)}; got {reward!r}")
        self.normalize = normalize
        self.calibrate = calibrate
        self.momentum = momentum
        self.alpha = alpha
        self.norm = norm
        self.reward = reward
        # Empty until the first logits tell its size.
        c = 0 if num_classes is None else check_int("AdaDEM's num_classes", num_classes, 2)
        self.register_buffer("table", torch.full((c, c), 1 / c) if c else torch.empty(0))

    def reset(self) -> None:
        """Set every entry of MEC's table to 1/C again."""
        if self.table.numel():
            self.table.fill_(1 / self.table.shape[-1])

    def loss(self, z: Tensor) -> Tensor:
        """Loss of each sample; the table takes in the batch first."""
        # log p serves as z: adding a constant to the logits changes neither the reward nor, as p and m both sum to 1,
        # the loss; for another alpha than 1 the difference is put right below. So no large numbers cancel.
        log_p = z.log_softmax(-1)
        p = log_p.exp()
        surprise = p * log_p
        entropy = -surprise.sum(-1)
        with torch.no_grad():
            subtracted = self._calibrator(p) if self.calibrate else p.detach()
            delta = self._delta(p, surprise, entropy) if self.normalize else 1
        loss = entropy + self.alpha * (subtracted * log_p).sum(-1)
        if self.alpha != 1:
            loss = loss - (1 - self.alpha) * z.logsumexp(-1)
        return loss / delta

    def _delta(self, p: Tensor, surprise: Tensor, entropy: Tensor) -> Tensor:
        """Norm of the reward, p_i (z_i + T + 1) of T or p_i (z_i + T) of H with log p as z and H as T, (..., N)."""
        offset = entropy + 1 if self.reward == "cadf" else entropy
        delta = NORMS[self.norm](torch.addcmul(surprise, p, offset.unsqueeze(-1)))
        # The reward of T sums to 1, so its norms are at least 1, 1/sqrt(C) and 1/C. That of H is 0 where p is sure.
        return delta if self.reward == "cadf" else delta.clamp_(min=torch.finfo(p.dtype).eps)

    def _calibrator(self, p: Tensor) -> Tensor:
        """Update the table with predictions (..., N, C) and return the row of each sample, (..., N, C)."""
        self._allocate(p)
        shape, p = p.shape, p.flatten(0, -2)
        label = p.max(-1).indices  # (N,); on a CPU, argmax takes three times as long
        same = (label.unsqueeze(-1) == label).to(p.dtype)  # (N, N)
        batch_mean = (same / same.sum(-1, keepdim=True)) @ p  # of the samples that share the pseudo-label
        rows = torch.lerp(self.table.index_select(0, label).to(p.dtype), batch_mean, self.momentum)
        # Samples of one pseudo-label write the same row; taking the first one's makes them equal to the last bit, and
        # so the order of the writes, which CUDA leaves open, does not matter.
        rows = rows.index_select(0, same.argmax(-1))
        self.table.index_copy_(0, label, rows.to(self.table.dtype))
        return rows.view(shape)

    def _allocate(self, p: Tensor) -> None:
        shape = (p.shape[-1], p.shape[-1])
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

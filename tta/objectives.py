"""Unsupervised objectives: logits of shape (..., N, C) to one loss per sample, (..., N), in nats.

No model, no optimizer and no labels, so that they serve in any training loop: ``loss = objective(logits).mean()``.

Decoupled Entropy Minimization (arXiv:2511.03256) splits the entropy of ``p = softmax(z)`` into ``T = -sum_i p_i z_i``
(the cluster aggregation driving factor, CADF) and ``Q = logsumexp(z)`` (the gradient mitigation calibrator, GMC):
``H = T + Q`` (eq. 6). The objectives below weigh, normalise or replace the two.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tta.utils.validation import ComponentError, check_int

# On a CPU, torch's vector_norm takes four times as long as the same sum of absolute values.
NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda reward: reward.abs().sum(-1),
    "l2": lambda reward: torch.linalg.vector_norm(reward, dim=-1),
    "linf": lambda reward: reward.abs().amax(-1),
}
REWARDS = ("cadf", "entropy")


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


class EM(Objective):
    """Entropy minimisation, ``H = -sum_i p_i log p_i`` (Tent, arXiv:2006.10726; eq. 1 of arXiv:2511.03256)."""

    def loss(self, z: Tensor) -> Tensor:
        """Entropy of each prediction, in [0, ln C] nats."""
        log_p = z.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)


class CADF(Objective):
    """The cluster aggregation driving factor alone, ``T = -sum_i p_i z_i`` (arXiv:2511.03256, eq. 6).

    The same as ``DEM(tau=1, alpha=0)``: entropy minimisation without what mitigates its gradient.
    """

    def loss(self, z: Tensor) -> Tensor:
        """Minus the mean logit under the prediction."""
        return -(z.softmax(-1) * z).sum(-1)


class DEM(Objective):
    """Decoupled entropy minimisation, ``-sum_i q_i z_i + alpha logsumexp(z)`` with ``q = softmax(z / tau)``.

    Equation 11 of arXiv:2511.03256. ``DEM(1, 1)`` is ``EM``, ``DEM(1, 0)`` is ``CADF``.

    Args:
        tau: temperature of the reward, greater than 0.
        alpha: weight of the calibrator, at least 0.
        check: refuse a ``tau`` greater than 2 / ``alpha``.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(self, tau: float = 1.0, alpha: float = 1.0, check: bool = True) -> None:
        super().__init__()
        if not (0 < tau < math.inf and 0 <= alpha < math.inf):
            raise ValueError(f"DEM needs tau > 0 and alpha >= 0, got tau={tau} and alpha={alpha}")
        if check and tau * alpha > 2:
            raise ValueError(
                f"DEM needs tau <= 2 / alpha (proposition A.1 of arXiv:2511.03256), got tau={tau} > {2 / alpha:g}: "
                "choose a smaller one, or, for an ablation, give check=False"
            )
        self.tau = tau
        self.alpha = alpha

    def loss(self, z: Tensor) -> Tensor:
        """Weighted sum of both factors."""
        # log p in the place of z, and the difference made up for: large logits do not cancel, and DEM(1, 1) is EM.
        log_p = z.log_softmax(-1)
        factors = -((z / self.tau).softmax(-1) * log_p).sum(-1)
        return factors if self.alpha == 1 else factors + (self.alpha - 1) * z.logsumexp(-1)


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


class COME(Objective):
    """Conservative entropy (COME, arXiv:2410.10894): the entropy of an opinion that keeps a share for "do not know".

    Evidence ``exp(z_i)`` for each class gives it the belief ``exp(z_i) / S``, and the uncertainty has ``C / S``, with
    ``S = sum_i exp(z_i) + C``. That is the softmax of the logits and one more, ``ln C``, so it is computed as such,
    which is stable in any precision. The norm of the logits takes no gradient: the loss turns them, and does not let
    them grow, so that the uncertainty stays about what the source model gave.
    """

    def loss(self, z: Tensor) -> Tensor:
        """Entropy over the C classes and the uncertainty, in [0, ln(C + 1)] nats."""
        norm = torch.linalg.vector_norm(z, dim=-1, keepdim=True).clamp(min=torch.finfo(z.dtype).eps)
        z = z / norm * norm.detach()
        log_p = torch.cat((z, torch.full_like(z[..., :1], math.log(z.shape[-1]))), dim=-1).log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)


class SLR(Objective):
    """Soft likelihood ratio, ``-sum_i p_i log(p_i / (1 - p_i))``, as the method ROID (arXiv:2306.00650) uses it.

    Args:
        clip: probabilities are cut here from above, where the ratio grows without bound; in (0, 1).
        eps: is added to the ratio, greater than 0.

    Raises:
        ValueError: for a value out of range.
    """

    def __init__(self, clip: float = 0.99, eps: float = 1e-5) -> None:
        super().__init__()
        if not (0 < clip < 1 and eps > 0):
            raise ValueError(f"SLR needs clip in (0, 1) and eps > 0, got clip={clip} and eps={eps}")
        self.clip = clip
        self.eps = eps

    def loss(self, z: Tensor) -> Tensor:
        """Minus the mean log-ratio under the prediction, in nats; negative for sure predictions."""
        p = z.softmax(-1).clamp(max=self.clip)
        return -(p * (p / (1 - p) + self.eps).log()).sum(-1)

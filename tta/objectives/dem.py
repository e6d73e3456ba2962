"""Entropy minimisation, and its decoupled form with both factors weighed."""

from __future__ import annotations

import math

from torch import Tensor

from tta.objectives.base import Objective


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

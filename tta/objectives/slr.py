"""SLR: the soft likelihood ratio that ROID minimises."""

from __future__ import annotations

from torch import Tensor

from tta.objectives.base import Objective


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

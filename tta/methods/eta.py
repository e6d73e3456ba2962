"""ETA: Tent on samples that are sure and unlike those before."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tta.methods.base import Method, OptimizerFactory, use_batch_statistics
from tta.methods.common.losses import probabilities, selected_mean
from tta.methods.common.parameters import NORM_PARAMETERS, ParameterChoice
from tta.objectives import EM, Objective, clone_objective


class ETA(Method):
    """Efficient test-time adaptation, EATA without its regulariser (arXiv:2204.02610).

    A sample is used if its entropy H is below ``margin * ln(C)`` nats, and the cosine between its prediction and m
    below ``diversity``. Its loss counts ``exp(margin * ln(C) - H)`` times, without gradient, and the loss of the batch
    is the mean over the samples used. m is a moving average of the mean prediction over the samples used. There is none
    until the first of them, so that the first batch with sure samples is filtered by entropy alone. If no sample is
    left, nothing changes: neither parameters, nor moments of the optimizer, nor m.

    BatchNorm layers use the statistics of the current batch. The logits are those of the forward pass before the
    update. The official code's ``reset`` keeps the moving average m of the predictions; here it is forgotten with
    the rest, so that a domain does not depend on the one before.

    Args:
        backbone: see ``Method``.
        objective: loss per sample on the logits; it is copied. It takes the place of the entropy in the loss; selection
            and weights keep the entropy.
        optimizer: makes an optimizer of the adapted parameters.
        adapt: which parameters those are.
        margin: largest entropy, as a fraction of ln(C), greater than 0.
        diversity: largest cosine, greater than 0; 1 and more keeps all but equal predictions, or all.
        momentum: share of the batch in m, in (0, 1].
        window: see ``Method``.

    Raises:
        ValueError: if no parameter is left to adapt, or a value is out of range.
    """

    average: Tensor  # (C,): m; 0 while there is none

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        optimizer: OptimizerFactory,
        adapt: ParameterChoice = NORM_PARAMETERS,
        margin: float = 0.4,
        diversity: float = 0.05,
        momentum: float = 0.1,
        window: int = 0,
    ) -> None:
        super().__init__(backbone, window)
        if not (margin > 0 and diversity > 0 and 0 < momentum <= 1):
            raise ValueError(
                "method.margin and method.diversity must be greater than 0 and method.momentum in (0, 1], got "
                f"margin={margin}, diversity={diversity} and momentum={momentum}"
            )
        self.objective = clone_objective(objective)
        self.entropy = EM()
        self.margin = margin
        self.diversity = diversity
        self.momentum = momentum
        self.register_buffer("average", torch.empty(0))
        use_batch_statistics(self)
        self.optimizer = self.make_optimizer(adapt(self.backbone), optimizer)

    def step(self, images: Tensor) -> Tensor:
        """Predict, then update on the samples that are sure and unlike those before, if there are any."""
        logits = self.backbone(images)
        entropy = self.entropy(logits.detach())  # H(x)
        limit = self.margin * math.log(logits.shape[-1])  # E_0
        selected = self._select(logits.detach(), entropy < limit)  # S(x)
        weight = (limit - entropy).exp()  # 1 / exp(H(x) - E_0)
        loss = selected_mean(weight * self.objective(logits), selected) + self.regularizer()
        num_used = selected.sum()
        if num_used > 0:
            self.update(loss)
        self.log(loss=loss, used=num_used)
        return logits

    def regularizer(self) -> Tensor | float:
        """Return what is added to the loss of every update; EATA's is not 0."""
        return 0.0

    def _select(self, logits: Tensor, sure: Tensor) -> Tensor:
        """Tell which of the sure samples (N,) are unlike those before, and take them into the moving average."""
        p = probabilities(logits)
        if not self.average.numel():
            self.average = p.new_zeros(p.shape[-1])
        # As long as there is no m, it is 0, and so is the cosine: every prediction is unlike it.
        selected = sure & (F.cosine_similarity(self.average, p, dim=-1) < self.diversity)
        mean = torch.where(selected.unsqueeze(-1), p, 0).sum(0) / selected.sum().clamp(min=1)
        share = torch.where(self.average.any(), self.momentum, p.new_ones(()))
        self.average.lerp_(mean, share * selected.any())
        return selected

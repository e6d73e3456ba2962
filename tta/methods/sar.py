"""SAR: sharpness-aware minimisation on reliable samples, and recovery from collapse."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tta.checks import number
from tta.methods.base import Method, OptimizerFactory, use_batch_statistics
from tta.methods.parameters import NORM_BUT_LAST, ParameterChoice
from tta.methods.updates import ascended, forget_where, restore_where, selected_mean
from tta.objectives import EM, Objective, copy_of


class SAR(Method):
    """Sharpness-aware and reliable entropy minimisation (arXiv:2302.12400), with any objective in the entropy's place.

    BatchNorm layers use the statistics of the current batch; scale and shift of normalisation layers adapt, but for
    those of the last layers. Each batch goes through the network twice:

    1. of the samples with entropy below the margin, the mean of the objective gives a gradient, along which the
       parameters move by the length ``rho``, to where the loss is larger;
    2. there, of those samples with entropy still below the margin, the mean of the objective gives the gradient of the
       update, which is made from where the parameters were before.

    The logits are those of the first pass. A moving average of the mean entropy of the samples of the second mean, the
    first of which it begins with, watches for collapse: where it falls below ``recovery``, parameters, optimizer,
    objective and average begin anew. Where no sample is left, nothing changes at all.

    An objective takes the entropy's place in both means; selection and moving average keep the entropy. An objective
    with state sees, and learns from, the logits of both passes.

    Args:
        backbone: see ``Method``.
        objective: loss per sample on the logits; it is copied.
        optimizer: makes an optimizer of the adapted parameters, e.g. ``functools.partial(torch.optim.SGD, lr=1e-3)``.
        adapt: which parameters those are.
        margin: of the entropy, as a fraction of ln C, in [0, 1].
        rho: length of the move, at least 0.
        recovery: threshold of the moving average, in nats, at least 0 (e_m in the paper; 0 never recovers). It does
            not depend on C, so it wants a smaller value for few classes.
        momentum: share of the past in the moving average, in [0, 1].
        window: see ``Method``.
        official_quirks: do as the official code where it differs from what is said above: a recovery neither clears
            the moving average, so that each batch recovers anew until it has climbed over the threshold, nor the
            optimizer's momentum; and where no sample is left, the parameters still move by the momentum.

    Raises:
        ValueError: for a value out of range, or if no parameter is left to adapt.
    """

    average: Tensor  # (), of the entropy in nats; NaN as long as there is none

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        optimizer: OptimizerFactory,
        adapt: ParameterChoice = NORM_BUT_LAST,
        margin: float = 0.4,
        rho: float = 0.05,
        recovery: float = 0.2,
        momentum: float = 0.9,
        window: int = 0,
        official_quirks: bool = False,
    ) -> None:
        super().__init__(backbone, window)
        self.objective = copy_of(objective)
        self.entropy = EM()
        self.margin = number("method.margin", margin, 0, 1)
        self.rho = number("method.rho", rho, 0)
        self.recovery = number("method.recovery", recovery, 0)
        self.momentum = number("method.momentum", momentum, 0, 1)
        self.official_quirks = official_quirks
        use_batch_statistics(self)
        chosen = adapt(self.backbone)
        self.optimizer = self.adapt(chosen, optimizer)
        self.weights = list(chosen.values())
        self.start = [weight.detach().clone() for weight in self.weights]
        self.register_buffer("average", self.start[0].new_full((), math.nan))

    def step(self, images: Tensor) -> Tensor:
        """Predict, then update by the gradient of the worst parameters nearby."""
        logits = self.backbone(images)
        _, reliable = self._entropy(logits)
        self.backward(selected_mean(self.objective(logits), reliable))
        with ascended(self.weights, self.rho):
            self.optimizer.zero_grad()
            logits_there = self.backbone(images)
            entropy, reliable_there = self._entropy(logits_there)
            kept = reliable & reliable_there
            loss = selected_mean(self.objective(logits_there), kept)
            self.backward(loss)
        used = kept.sum()
        self.update(self.optimizer, None if self.official_quirks else used > 0)
        self.optimizer.zero_grad()
        self._recover(selected_mean(entropy, kept), used > 0)
        self.report(loss=loss.detach(), used=used)
        return logits

    def _entropy(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Entropy of each prediction, in nats, and whether it is below the margin: (N,) each."""
        entropy = self.entropy(logits.detach())
        return entropy, entropy < self.margin * math.log(logits.shape[-1])

    @torch.no_grad()
    def _recover(self, entropy: Tensor, there_is_any: Tensor) -> None:
        """Take the mean entropy into the moving average, and begin anew where that is too small."""
        entropy = entropy.to(self.average.dtype)
        moved = torch.where(self.average.isnan(), entropy, entropy.lerp(self.average, self.momentum))
        average = torch.where(there_is_any, moved, self.average)
        collapsed = average < self.recovery  # not where it is NaN
        restore_where(collapsed, self.weights, self.start, None if self.official_quirks else self.optimizer)
        forget_where(collapsed, self.objective)
        self.average.copy_(average if self.official_quirks else torch.where(collapsed, math.nan, average))

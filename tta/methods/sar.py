"""SAR: sharpness-aware minimisation on reliable samples, and recovery from collapse."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tta.methods.base import Method, OptimizerFactory, use_batch_statistics
from tta.methods.common.losses import selected_mean
from tta.methods.common.parameters import NORM_BUT_LAST, ParameterChoice
from tta.methods.common.resettable import BufferList
from tta.objectives import EM, Objective, clone_objective
from tta.utils.validation import check_float


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
        self.objective = clone_objective(objective)
        self.entropy = EM()
        self.margin = check_float("method.margin", margin, 0, 1)
        self.rho = check_float("method.rho", rho, 0)
        self.recovery = check_float("method.recovery", recovery, 0)
        self.momentum = check_float("method.momentum", momentum, 0, 1)
        self.official_quirks = official_quirks
        use_batch_statistics(self)
        chosen = adapt(self.backbone)
        self.optimizer = self.make_optimizer(chosen, optimizer)
        self.weights: list[Tensor] = list(chosen.values())
        self.start = BufferList(self.weights)
        self.register_buffer("average", self.weights[0].new_full((), math.nan))

    def step(self, images: Tensor) -> Tensor:
        """Predict, then update by the gradient of the worst parameters nearby."""
        logits = self.backbone(images)
        _, reliable = self._entropy(logits)  # E(x) < E_0
        self.optimizer.zero_grad()
        self.backward(selected_mean(self.objective(logits), reliable))
        self.unscale_gradients()
        with sam_perturbation(self.weights, self.rho):  # at w + e, e = rho g / |g|
            perturbed_logits = self.backbone(images)
            entropy, still_reliable = self._entropy(perturbed_logits)
            selected = reliable & still_reliable
            loss = selected_mean(self.objective(perturbed_logits), selected)
            self.optimizer.zero_grad()
            self.backward(loss)
        num_used = selected.sum()
        any_used = bool(num_used > 0)
        if any_used or self.official_quirks:
            self.apply_gradients()  # at w, with the gradient at w + e
        self._recover(selected_mean(entropy, selected) if any_used else None)
        self.log(loss=loss, used=num_used)
        return logits

    def _entropy(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Entropy of each prediction, in nats, and whether it is below the margin: (N,) each."""
        entropy = self.entropy(logits.detach())
        return entropy, entropy < self.margin * math.log(logits.shape[-1])

    @torch.no_grad()
    def _recover(self, entropy: Tensor | None) -> None:
        """Update the moving average with the mean entropy, if there is one; restart where the average is too small."""
        if entropy is not None:
            entropy = entropy.to(self.average.dtype)
            self.average.copy_(entropy if self.average.isnan() else entropy.lerp(self.average, self.momentum))
        if not self.average < self.recovery:  # as for NaN
            return
        torch._foreach_copy_(self.weights, list(self.start))
        self.objective.reset()
        if not self.official_quirks:
            self.optimizer.state.clear()
            self.average.fill_(math.nan)


@contextmanager
def sam_perturbation(parameters: Iterable[Tensor], rho: float) -> Iterator[None]:
    """Within the block, parameters stand where the loss is larger: up their gradients by a length of ``rho``.

    The gradients of all parameters together are one vector, ``g``, and the move is ``rho g / (|g| + 1e-12)``
    (sharpness-aware minimisation); none where all gradients are zero. Afterwards the parameters are exactly, to the
    last bit, what they were; their gradients are those of before until somebody clears them.
    """
    moved: list[Tensor] = [parameter for parameter in parameters if parameter.grad is not None]
    with torch.no_grad():
        before = [parameter.clone() for parameter in moved]
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_add_(moved, list(torch._foreach_mul(gradients, rho / (length + 1e-12))))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(moved, before)

"""Tent: minimise an objective on the scale and shift of normalisation layers."""

from __future__ import annotations

from torch import Tensor, nn

from tta.methods.base import Method, OptimizerFactory, use_batch_statistics
from tta.methods.common.parameters import NORM_PARAMETERS, ParameterChoice
from tta.objectives import Objective, clone_objective
from tta.utils.validation import check_int


class Tent(Method):
    """Test-time entropy minimisation (arXiv:2006.10726), with any objective in the place of the entropy.

    BatchNorm layers use the statistics of the current batch; scale and shift of BatchNorm, LayerNorm and GroupNorm
    layers follow the gradient of the batch mean of the objective. The logits are those of the forward pass before the
    update (before the last one, with several steps), as in the official code.

    Args:
        backbone: see ``Method``.
        objective: loss per sample on the logits; it is copied.
        optimizer: makes an optimizer of the adapted parameters, e.g. ``functools.partial(torch.optim.SGD, lr=1e-3)``.
        adapt: which parameters those are.
        steps: updates per batch, at least 1.
        window: see ``Method``.

    Raises:
        ValueError: if no parameter is left to adapt, or ``steps`` is less than 1.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        optimizer: OptimizerFactory,
        adapt: ParameterChoice = NORM_PARAMETERS,
        steps: int = 1,
        window: int = 0,
    ) -> None:
        super().__init__(backbone, window)
        self.objective = clone_objective(objective)
        self.steps = check_int("method.steps", steps, 1)
        use_batch_statistics(self)
        self.optimizer = self.make_optimizer(adapt(self.backbone), optimizer)

    def step(self, images: Tensor) -> Tensor:
        """Predict, then update; with several steps, predict once more before each."""
        for _ in range(self.steps):
            logits = self.backbone(images)
            loss = self.objective(logits).mean()
            self.update(loss)
        self.log(loss=loss, used=len(images))
        return logits

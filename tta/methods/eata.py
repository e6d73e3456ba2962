"""EATA: ETA that keeps to the source model where that matters on clean images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tta.checks import number
from tta.methods.base import OptimizerFactory
from tta.methods.fisher import fisher_information
from tta.methods.onepass import Loss
from tta.methods.selective import SelectiveMethod
from tta.objectives import Objective
from tta.streams.clean import CleanImages


class EATA(SelectiveMethod):
    """Efficient anti-forgetting test-time adaptation (arXiv:2204.02610): ETA with a regulariser.

    ``fisher_alpha * sum F (theta - theta0)^2`` over the adapted parameters is added to the loss of every update; theta0
    are those of the source, F their diagonal Fisher information, see ``fisher_information``. See ``SelectiveMethod``
    for the rest, and ``ETA`` for the official code's ``reset``.

    Args:
        backbone: see ``Method``.
        objective: see ``SelectiveMethod``.
        optimizer: see ``SelectiveMethod``.
        fisher: clean images of the source domain that F is taken from.
        fisher_alpha: weight of the regulariser, at least 0.
        options: the other arguments of ``SelectiveMethod``.

    Raises:
        ValueError: if no parameter is left to adapt, or a value is out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        optimizer: OptimizerFactory,
        fisher: CleanImages,
        fisher_alpha: float = 2000.0,
        **options: Any,
    ) -> None:
        super().__init__(backbone, objective, optimizer, **options)
        self.fisher_alpha = number("method.fisher_alpha", fisher_alpha, 0)
        self.data = fisher.digest
        information = fisher_information(self.backbone, fisher)
        self._adapted = [self.backbone.get_parameter(name) for name in information]
        self._source = _joined(self._adapted).detach()
        self._information = _joined(list(information.values()))

    def loss(self, logits: Tensor, losses: Tensor) -> Loss:
        """Weighted mean over the samples that are used, and the regulariser."""
        value, used = super().loss(logits, losses)
        distance = (_joined(self._adapted) - self._source).square()
        return Loss(value + self.fisher_alpha * (self._information * distance).sum(), used)


def _joined(tensors: list[Any]) -> Tensor:
    """All values in one row: a regulariser of few operations, however many layers there are."""
    return torch.cat([tensor.flatten() for tensor in tensors])

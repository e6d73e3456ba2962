"""EATA: ETA that keeps to the source model where that matters on clean images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tta.methods.base import OptimizerFactory
from tta.methods.common.fisher import fisher_information
from tta.methods.eta import ETA
from tta.objectives import Objective
from tta.streams.datasets.source_images import CleanImages
from tta.utils.validation import check_float


class EATA(ETA):
    """Efficient anti-forgetting test-time adaptation (arXiv:2204.02610): ETA with a regulariser.

    ``fisher_alpha * sum F (theta - theta0)^2`` over the adapted parameters is added to the loss of every update; theta0
    are those of the source, F their diagonal Fisher information, see ``fisher_information``. See ``ETA`` for the
    rest.

    Args:
        backbone: see ``Method``.
        objective: see ``ETA``.
        optimizer: see ``ETA``.
        fisher: clean images of the source domain that F is taken from.
        fisher_alpha: weight of the regulariser, at least 0.
        options: the other arguments of ``ETA``.

    Raises:
        ValueError: if no parameter is left to adapt, or a value is out of range.
    """

    source: Tensor  # theta0, all adapted parameters in one row
    information: Tensor  # F

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
        self.fisher_alpha = check_float("method.fisher_alpha", fisher_alpha, 0)
        self.data_digest = fisher.digest
        information = fisher_information(self.backbone, fisher)
        self._adapted = [self.backbone.get_parameter(name) for name in information]
        self.register_buffer("source", _joined(self._adapted).detach(), persistent=False)
        self.register_buffer("information", _joined(list(information.values())), persistent=False)

    def regularizer(self) -> Tensor:
        """Return ``fisher_alpha * sum F (theta - theta0)^2``."""
        return self.fisher_alpha * (self.information * (_joined(self._adapted) - self.source).square()).sum()


def _joined(tensors: list[Any]) -> Tensor:
    """All values in one row: a regulariser of few operations, however many layers there are."""
    return torch.cat([tensor.flatten() for tensor in tensors])

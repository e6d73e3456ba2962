"""BatchNorm statistics of the test batch, weights frozen."""

from __future__ import annotations

from torch import Tensor, nn

from tta.methods.base import Method, use_batch_statistics


class BNAdapt(Method):
    """BatchNorm normalises with the mean and variance of the current batch; nothing is learnt.

    "Prediction-time batch normalisation" (arXiv:2006.10963), the row "norm" or "BN" of most tables, with no share of
    the source statistics. A backbone without BatchNorm predicts as ``Source`` does.

    Args:
        backbone: see ``Method``.
        window: see ``Method``.
    """

    def __init__(self, backbone: nn.Module, window: int = 0) -> None:
        super().__init__(backbone, window)
        use_batch_statistics(self)

    def step(self, images: Tensor) -> Tensor:
        """Predict with the statistics of these images."""
        return self.predict(images)

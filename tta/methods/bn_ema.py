"""BatchNorm with running statistics that follow the test batches, weights frozen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tta.methods.base import Method
from tta.methods.common.batch_norm import blend_statistics, track_with_momentum


class BNEma(Method):
    """The running statistics of BatchNorm move towards each batch, then normalise it; nothing is learnt.

    ``running <- (1 - share) running + share batch`` in every layer, within one forward pass; they begin as those of
    the source. A backbone without BatchNorm predicts as ``Source`` does.

    Args:
        backbone: see ``Method``.
        share: of the batch, in [0, 1].
        official_quirks: as the implementation in use does, take two forward passes: the first in training mode, where
            each layer normalises by the batch alone, and so shows the layers behind it other inputs than those that
            the second, with the running statistics, has; and take the unbiased variance.

    Raises:
        ValueError: for a share out of range, or if a BatchNorm layer has no running statistics.
    """

    def __init__(self, backbone: nn.Module, share: float = 0.1, official_quirks: bool = False) -> None:
        super().__init__(backbone)
        self.official_quirks = official_quirks
        self.share = share
        if official_quirks:
            track_with_momentum(self.backbone, share)
        else:
            blend_statistics(self.backbone, share, track=True)

    def step(self, images: Tensor) -> Tensor:
        """Take in the batch, and predict it."""
        if self.official_quirks:
            layers = track_with_momentum(self.backbone, self.share)
            for layer in layers:
                layer.training = True
            with torch.no_grad():
                self.backbone(images)
            for layer in layers:
                layer.training = False
        return self.predict(images)

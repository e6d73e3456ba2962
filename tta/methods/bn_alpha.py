"""BatchNorm statistics mixed from those of the source and of the test batch, weights frozen."""

from __future__ import annotations

from torch import Tensor, nn

from tta.methods.base import Method
from tta.methods.common.batch_norm import BlendedBatchNorm, blend_statistics
from tta.utils.validation import check_float


class BNAlpha(Method):
    """BatchNorm normalises with ``(1 - share)`` source and ``share`` batch statistics; nothing is learnt.

    A small share works on single images, where the batch alone gives no statistics. With a ``prior`` of N, the source
    weighs as much as N images: of n images the share is n / (N + n), whatever the size of the batch (arXiv:2006.16971).
    A share of 1 is ``BNAdapt``, of 0 ``Source``; a backbone without BatchNorm predicts as ``Source`` does.

    Args:
        backbone: see ``Method``.
        share: of the batch, in [0, 1].
        prior: N, at least 0; takes the place of ``share``.
        official_quirks: take the unbiased variance of the batch, as the implementation in use does; a share of 1 is
            then not quite ``BNAdapt``, and one value in a channel (one image, no spatial extent) gives no variance.

    Raises:
        ValueError: for a share or prior out of range, or if a BatchNorm layer has no running statistics.
    """

    def __init__(
        self, backbone: nn.Module, share: float = 0.1, prior: float | None = None, official_quirks: bool = False
    ) -> None:
        super().__init__(backbone)
        self.prior = None if prior is None else check_float("method.prior", prior, 0)
        blend_statistics(self.backbone, share, unbiased=official_quirks)

    def step(self, images: Tensor) -> Tensor:
        """Predict with the mixture."""
        if self.prior is not None:
            for layer in self.backbone.modules():
                if isinstance(layer, BlendedBatchNorm):
                    layer.share = len(images) / (self.prior + len(images))
        return self.predict(images)

"""RDumb: ETA that begins anew every so often."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tta.methods.base import OptimizerFactory
from tta.methods.eta import ETA
from tta.objectives import Objective
from tta.utils.validation import check_int


class RDumb(ETA):
    """ETA with a full reset after every ``reset_every`` batches (arXiv:2306.05401).

    The weights, the optimizer, the moving average and the objective go back to their beginning, and the next batch is
    predicted with the weights of the source. Batches are counted from the last reset, whoever asked for it. With a
    ``window`` the reset waits for the next update, and the window of images, which are no part of what is learnt,
    stays. See ``ETA`` for the rest.

    Args:
        backbone: see ``Method``.
        objective: see ``ETA``.
        optimizer: see ``ETA``.
        reset_every: batches from one reset to the next, at least 1.
        options: the other arguments of ``ETA``.

    Raises:
        ValueError: if no parameter is left to adapt, or a value is out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        optimizer: OptimizerFactory,
        reset_every: int = 1000,
        **options: Any,
    ) -> None:
        super().__init__(backbone, objective, optimizer, **options)
        self.reset_every = check_int("method.reset_every", reset_every, 1)

    def step(self, images: Tensor) -> Tensor:
        """Begin anew if it is time; predict, then adapt on the samples that are used."""
        if self.batches_seen >= self.reset_every:
            self._begin_anew()
        return super().step(images)

    def _begin_anew(self) -> None:
        # ``reset`` sets batches_seen to 0, so that it counts from here; the window and its place in the stream stay.
        recent, images_seen = self.window_buffer, self.images_seen
        self.reset()
        self.window_buffer, self.images_seen = recent, images_seen

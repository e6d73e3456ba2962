"""The frozen backbone: what every adaptation is measured against."""

from __future__ import annotations

from torch import Tensor

from tta.methods.base import Method


class Source(Method):
    """No adaptation: frozen weights, BatchNorm with the running statistics of the source data."""

    def step(self, images: Tensor) -> Tensor:
        """Predict."""
        return self.predict(images)

"""The frozen backbone: what every adaptation is measured against."""

from __future__ import annotations

from tta.methods.onepass import OnePass


class Source(OnePass):
    """No adaptation: frozen weights, BatchNorm with the running statistics of the source data."""

"""CIFAR-10-C on 200 images of the test set, as published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class Published:
    """The originals and what the official recipe made of them, uint8 (n, 3, 32, 32)."""

    COUNT = 200

    def __init__(self, root: Path) -> None:
        self.root = root

    def clean(self, n: int = COUNT) -> Tensor:
        return self._read("clean", slice(0, n))

    def corrupted(self, name: str, severity: int, n: int = COUNT) -> Tensor:
        first = self.COUNT * (severity - 1)
        return self._read(name, slice(first, first + n))

    def labels(self) -> Tensor:
        """Of the images at all severities, one after the other, as in the published file: int64 (1000,)."""
        return torch.from_numpy(np.load(self.root / "labels.npy").astype(np.int64))

    def _read(self, name: str, rows: slice) -> Tensor:
        images = np.load(self.root / f"{name}.npy", mmap_mode="r")[rows]
        return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).contiguous()

"""A stream whose images say which they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tta.streams import Domain, Stream
from tta.streams.types import LoadedImages


@dataclass
class Numbered:
    """Image i is filled with i + shift; those in ``broken`` are left out, or raise."""

    broken: tuple[int, ...] = ()
    stop: bool = False
    shift: int = 0

    def __call__(self, index: torch.Tensor) -> LoadedImages:
        kept = [k for k, i in enumerate(index.tolist()) if i not in self.broken]
        skipped = tuple(str(i) for i in index.tolist() if i in self.broken)
        if skipped and self.stop:
            raise ValueError(f"image {skipped[0]} is broken")
        images = (index[kept] + self.shift).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        return LoadedImages(images, torch.tensor(kept, dtype=torch.int64), skipped)


def domain(name: str = "fog", n: int = 23, severity: int = 5, load: Numbered | None = None) -> Domain:
    return Domain(name, severity, torch.arange(n) % 7, load or Numbered())


def stream(*domains: Domain, batch_size: int = 10, **options: Any) -> Stream:
    return Stream(domains or [domain()], 7, batch_size, **options)

"""Small images in the layout of ImageNet-C, streams of them, and batches to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tta.streams import Batch, Scenario, Stream
from tta.streams.datasets.imagenet import imagenet_c

WNIDS = ("n01440764", "n01443537", "n02106662")
N = 9


def write(path: Path, seed: int, size: int = 32) -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(path, quality=90)


def tree(root: Path) -> Path:
    """Nine small images under fog and under snow."""
    for place, name in enumerate(("fog", "snow")):
        for number in range(N):
            write(root / name / "5" / WNIDS[number % 3] / f"{number}.JPEG", 100 * place + number)
    return root


def make(root: Path, cache: Path | bool = False, **options: Any) -> Stream:
    how = str(cache) if isinstance(cache, Path) else cache
    return imagenet_c(
        str(root),
        **{"corruptions": ["fog", "snow"], "size": 32, "workers": 0, "batch_size": 4, "cache": how, **options},
    )


def read(stream: Stream, scenario: Scenario | None = None) -> list[Batch]:
    return list(stream.batches(stream.plan(scenario or Scenario(), 3)))


def same(ours: list[Batch], theirs: list[Batch]) -> bool:
    """Whether batches have the same content, and lie in memory in the same way."""
    assert len(ours) == len(theirs)
    return all(
        all(torch.equal(getattr(a, key), getattr(b, key)) for key in ("images", "labels", "domain_index", "index"))
        and a.images.stride() == b.images.stride()
        and (a.visits, a.starts_domain, a.reset, a.skipped) == (b.visits, b.starts_domain, b.reset, b.skipped)
        for a, b in zip(ours, theirs, strict=True)
    )


def caches(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())

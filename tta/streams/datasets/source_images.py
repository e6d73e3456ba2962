"""Clean images of the source domain, without labels, for methods that look at some before the stream begins."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tta.data.layouts import EXTENSIONS
from tta.streams.files import imagenet_crop, read_rgb
from tta.utils.validation import check_int

KEY = "method.fisher"
"""Where a configuration has the arguments below."""


class Source(Protocol):
    """Where clean images are."""

    def __len__(self) -> int:
        """How many there are."""

    def read(self, index: Tensor) -> Tensor:
        """Read those of these indices, uint8 (n, 3, H, W)."""

    def cache_key(self, sample: int) -> bytes:
        """All that the pixels of an image follow from, unread."""


class CleanImages:
    """A fixed choice of clean images, in batches that are read when their turn comes.

    The choice is the first ``limit`` of a random order that depends on the number of images alone, so that it is the
    same in every run. A last batch of a single image, which has no statistics for BatchNorm, is left out.

    Args:
        source: where they are.
        limit: the most images.
        batch_size: images in a batch, at least 2; the last one may have fewer.

    Raises:
        ValueError: for a number out of range, or fewer than two images.
    """

    def __init__(self, source: Source, limit: int = 2000, batch_size: int = 64) -> None:
        limit = check_int(f"{KEY}.limit", limit, 2)
        self.batch_size = check_int(f"{KEY}.batch_size", batch_size, 2)
        self.source = source
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:limit]
        self.chosen = order[:-1] if len(order) % self.batch_size == 1 else order
        if not len(self.chosen):
            raise ValueError(f"{KEY}.root has {len(source)} image(s), at least 2 are needed")

    def __len__(self) -> int:
        """How many images are chosen."""
        return len(self.chosen)

    def __iter__(self) -> Iterator[Tensor]:
        """Read the batches, uint8 (n, 3, H, W)."""
        return map(self.source.read, self.chosen.split(self.batch_size))

    @cached_property
    def digest(self) -> str:
        """Name of the chosen images, wherever they are: of the content of all of them, in their order."""
        content = hashlib.sha256()
        for sample in self.chosen.tolist():
            content.update(hashlib.sha256(self.source.cache_key(sample)).digest())
        return content.hexdigest()[:12]


def clean_images(
    root: str | None = None, limit: int = 2000, batch_size: int = 64, size: int | None = None
) -> CleanImages:
    """Find clean images.

    Args:
        root: a folder of images, which may be in folders within it (of classes, as it may be: they count for nothing),
            an ``.npz`` file with the array ``images``, uint8 (N, H, W, 3), or ``demo``, the digits that the demo's
            backbone is trained on.
        limit: see ``CleanImages``.
        batch_size: see ``CleanImages``.
        size: height and width that a folder's images are to have in pixels: their shorter side is resized to 8/7 of it
            and the middle cut out, 256 and 224 as ImageNet-C was made. By default they are taken as they are, and must
            be of one size.

    Raises:
        FileNotFoundError: if there is no such file or folder, or no image in it.
        ValueError: if no root is given, the file has something else in it, or a number is out of range.
    """
    if root is None:
        raise ValueError(
            f"EATA's Fisher information needs clean images of the source domain (labels are not used): give them with "
            f"{KEY}.root=<folder of images, or .npz file with the array images>"
        )
    size = None if size is None else check_int(f"{KEY}.size", size, 1)
    return CleanImages(_source(root, size), limit, batch_size)


def read_npz(path: Path, *names: str) -> list[np.ndarray]:
    """Read arrays of an ``.npz`` file, by name.

    Raises:
        ValueError: if it is none, or has other arrays.
    """
    wanted = f"the array{'s' * (len(names) > 1)} {' and '.join(names)}"
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is truncated or no .npz file: expected one with {wanted}")
    with np.load(path, allow_pickle=False) as file:
        if not set(names) <= set(file.files):
            raise ValueError(f"{path}: expected {wanted}, got {', '.join(file.files)}")
        return [file[name] for name in names]


def are_images(array: np.ndarray) -> bool:
    """Whether an array is of images, uint8 (N, H, W, 3)."""
    return array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] == 3


class _Pixels:
    """Images in memory, uint8 (N, 3, H, W)."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: Tensor) -> Tensor:
        return self.images[index]

    def cache_key(self, sample: int) -> bytes:
        image = self.images[sample]
        return repr(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes()


class _Files:
    """Images in files below a folder, in alphabetical order."""

    def __init__(self, folder: Path, size: int | None) -> None:
        there = (Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names)
        self.paths = sorted(path for path in there if path.suffix.lower() in EXTENSIONS)
        self.size = size
        if not self.paths:
            raise FileNotFoundError(f"{KEY}.root: there are no images ({', '.join(EXTENSIONS)}) in {folder}")

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: Tensor) -> Tensor:
        paths = [self.paths[sample] for sample in index.tolist()]
        images = [self._decode(path) for path in paths]
        for path, image in zip(paths, images, strict=True):
            if image.shape != images[0].shape:
                raise ValueError(
                    f"images of one size are needed: {path} has {image.shape[1]}x{image.shape[0]} pixels, {paths[0]} "
                    f"{images[0].shape[1]}x{images[0].shape[0]}; resize and crop them with {KEY}.size=<pixels>"
                )
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

    def cache_key(self, sample: int) -> bytes:
        return f"{self.size} ".encode() + self.paths[sample].read_bytes()

    def _decode(self, path: Path) -> np.ndarray:
        try:
            pixels = read_rgb(path)
        except (OSError, ValueError, SyntaxError) as error:  # PIL raises SyntaxError for a broken PNG
            raise ValueError(f"{path} cannot be read ({error}): fetch it again, or delete it") from error
        return pixels if self.size is None else np.array(imagenet_crop(Image.fromarray(pixels), self.size))


def _source(root: str, size: int | None) -> Source:
    if root == "demo":
        from tta.streams.datasets import demo

        return _Pixels(demo.split(trained=True)[0])
    path = Path(root).expanduser()
    if path.is_dir():
        return _Files(path, size)
    if not path.is_file():
        raise FileNotFoundError(
            f"{KEY}.root: there is no {path}: expected a folder of images or an .npz file with the array images"
        )
    (images,) = read_npz(path, "images")
    if not are_images(images):
        raise ValueError(f"{path}: expected images uint8 (N, H, W, 3), got {images.dtype} {images.shape}")
    return _Pixels(torch.from_numpy(images).permute(0, 3, 1, 2))

"""ImageNet-C (arXiv:1903.12261) in its official layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from tta.data.layouts import EXTENSIONS
from tta.streams.base import Domain, Loaded, Stream
from tta.streams.choices import choose_corruptions, choose_severities


class FileImages:
    """Images in files of one size.

    Args:
        paths: a file for each sample.
        size: expected height and width in pixels.
        skip: leave out files that cannot be read, instead of raising.
        crop: images of other sizes are resized and cropped, see ``imagenet_crop``; otherwise they count as unreadable.
    """

    def __init__(self, paths: list[Path], size: int, skip: bool, crop: bool = False) -> None:
        self.paths = paths
        self.size = size
        self.skip = skip
        self.crop = crop

    def __call__(self, index: Tensor) -> Loaded:
        """Decode the images of these indices into uint8 (n, 3, size, size)."""
        images, kept, faults = [], [], []
        for position, sample in enumerate(index.tolist()):
            try:
                images.append(self._decode(self.paths[sample]))
                kept.append(position)
            except (OSError, ValueError, SyntaxError) as error:  # PIL raises SyntaxError for a broken PNG
                faults.append(f"{self.paths[sample]} ({error})")
        if faults and not self.skip:
            raise ValueError(
                f"{len(faults)} unreadable image(s) in a batch of {len(index)}: {'; '.join(faults)}. Fetch the data "
                "again, or leave such images out, counted, with stream.on_error=skip"
            )
        shape = (len(images), self.size, self.size, 3)
        array = np.stack(images) if images else np.empty(shape, np.uint8)
        return Loaded(torch.from_numpy(array).permute(0, 3, 1, 2), torch.tensor(kept, dtype=torch.int64), tuple(faults))

    def _decode(self, path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                rgb = image.convert("RGB")
                pixels = np.array(imagenet_crop(rgb, self.size) if self.crop else rgb)
        except UnidentifiedImageError:
            raise ValueError("not an image") from None
        if pixels.shape[:2] != (self.size, self.size):
            height, width = pixels.shape[:2]
            raise ValueError(f"{width}x{height} pixels instead of {self.size}x{self.size}")
        return pixels


def imagenet_c(
    root: str,
    corruptions: str | Iterable[str] = "benchmark",
    severity: int | Sequence[int] = 5,
    batch_size: int = 64,
    limit: int | None = None,
    workers: int = 2,
    on_error: str = "stop",
    size: int = 224,
) -> Stream:
    """Make the stream of ImageNet-C: images as they are in the files, not resized.

    Args:
        root: folder with ``<corruption>/<severity>/<wnid>/*.JPEG``; a folder between, as in ``noise/gaussian_noise``,
            is found too. A class is the place of its wnid among the 1 000 in alphabetical order, also when folders
            are missing.
        corruptions: see ``choose_corruptions``.
        severity: see ``choose_severities``.
        batch_size: see ``Stream``.
        limit: see ``Stream``.
        workers: see ``Stream``.
        on_error: ``stop`` at an image that cannot be read, or ``skip`` and count it.
        size: height and width of the images in pixels.

    Raises:
        FileNotFoundError: if a folder is missing or empty.
        ValueError: for a folder that is no wnid of the 1 000, or a wrong option.
    """
    names = choose_corruptions(corruptions)
    severities = choose_severities(severity)
    if on_error not in ("stop", "skip"):
        raise ValueError(f"stream.on_error must be stop or skip, got {on_error!r}")
    base = Path(root).expanduser()
    if not base.is_dir():
        raise FileNotFoundError(
            f"stream.root: there is no folder {base}; expected <root>/<corruption>/<severity>/<wnid>/*.JPEG"
        )
    domains = []
    for name in names:
        levels: dict[int, tuple[FileImages, Tensor]] = {}  # a severity that comes again is listed once
        for level in severities:
            if level not in levels:
                paths, labels = _list(_find(base, name, level))
                levels[level] = FileImages(paths, size, on_error == "skip"), labels
            images, labels = levels[level]
            domains.append(Domain(name, level, labels, images))
    return Stream(domains, 1000, batch_size, limit, workers)


def imagenet_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to 8/7 of ``size`` and cut out the middle: 256 and 224, as ImageNet-C was made."""
    from torchvision.transforms.functional import center_crop, resize

    return center_crop(resize(image, size * 8 // 7), size)


@cache
def imagenet_classes() -> dict[str, int]:
    """Class index of each of ImageNet's 1 000 wnids."""
    from timm.data import ImageNetInfo

    return {wnid: number for number, wnid in enumerate(sorted(ImageNetInfo("imagenet-1k").label_names()))}


def _find(root: Path, name: str, severity: int) -> Path:
    candidates = [root / name, *sorted(root.glob(f"*/{name}"))]
    for folder in candidates:
        if (folder / str(severity)).is_dir():
            return folder / str(severity)
    found = next((folder for folder in candidates if folder.is_dir()), root)
    there = ", ".join(sorted(p.name for p in found.iterdir() if p.is_dir())) or "no folders"
    raise FileNotFoundError(
        f"stream.root: expected {root / name / str(severity)}/<wnid>/*.JPEG, which is not there; {found} holds: {there}"
    )


def _list(folder: Path) -> tuple[list[Path], Tensor]:
    classes = imagenet_classes()
    paths: list[Path] = []
    labels: list[int] = []
    for child in sorted(p for p in folder.iterdir() if p.is_dir()):
        if child.name not in classes:
            raise ValueError(f"{child}: {child.name!r} is not one of ImageNet's 1 000 wnids (n01440764 ... n15075141)")
        files = sorted(p for p in child.iterdir() if p.suffix.lower() in EXTENSIONS)
        paths.extend(files)
        labels.extend([classes[child.name]] * len(files))
    if not paths:
        raise FileNotFoundError(f"stream.root: there are no images in {folder}; expected <wnid>/*.JPEG in it")
    return paths, torch.tensor(labels)

"""ImageNet-C (arXiv:1903.12261) and ImageNet-3DCC (arXiv:2203.01441) in their official layouts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from tta.data.layouts import CORRUPTIONS_3D, FOLDERS
from tta.streams.base import Domain, Loaded, Stream
from tta.streams.choices import GROUPS, choose_corruptions, choose_on_error, choose_severities
from tta.streams.classes import imagenet_classes
from tta.streams.listing import Folders, list_images, read_subset

CORRUPTIONS_OF = {"imagenet_c": GROUPS, "imagenet_3dcc": {"benchmark": CORRUPTIONS_3D, "all": CORRUPTIONS_3D}}
"""Groups of corruptions in each data set; ``all`` is all of them."""


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
    subset: str | None = None,
    dataset: str = "imagenet_c",
) -> Stream:
    """Make the stream of ImageNet-C or ImageNet-3DCC: images as they are in the files, not resized.

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
        subset: see ``read_subset``; of each corruption and severity.
        dataset: ``imagenet_c``, with the corruptions ``benchmark``, ``extra`` and ``all``; or ``imagenet_3dcc``, whose
            12 corruptions are ``benchmark`` and ``all``.

    Raises:
        FileNotFoundError: if a folder is missing or empty, or images of the subset are missing.
        ValueError: for a folder that is no wnid of the 1 000, or a wrong option.
    """
    if dataset not in CORRUPTIONS_OF:
        raise ValueError(f"stream.dataset must be one of {', '.join(CORRUPTIONS_OF)}; got {dataset!r}")
    names = choose_corruptions(corruptions, CORRUPTIONS_OF[dataset])
    severities = choose_severities(severity)
    skip = choose_on_error(on_error)
    chosen = read_subset(subset)
    base = Path(root).expanduser()
    if not base.is_dir():
        raise FileNotFoundError(
            f"stream.root: there is no folder {base}; expected <root>/<corruption>/<severity>/<wnid>/*.JPEG of "
            f"{FOLDERS[dataset]}"
        )
    domains = []
    for name in names:
        levels: dict[int, tuple[FileImages, Tensor]] = {}  # a severity that comes again is listed once
        for level in severities:
            if level not in levels:
                paths, labels = list_images(_find(base, name, level), imagenet_folders(), chosen)
                levels[level] = FileImages(paths, size, skip), labels
            images, labels = levels[level]
            domains.append(Domain(name, level, labels, images))
    return Stream(domains, 1000, batch_size, limit, workers, subset=None if chosen is None else chosen.name)


def imagenet_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to 8/7 of ``size`` and cut out the middle: 256 and 224, as ImageNet-C was made."""
    from torchvision.transforms.functional import center_crop, resize

    return center_crop(resize(image, size * 8 // 7), size)


def imagenet_folders() -> Folders:
    """Folders of ImageNet's 1 000 classes."""
    return Folders(imagenet_classes(), "ImageNet's 1 000 wnids (n01440764 ... n15075141)")


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

"""Images in files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from tta.streams.types import LoadedImages

JPEG = b"\xff\xd8"
FAST = ("YCbCr", "Gray")
"""Colours of JPEG files that the fast decoder reads; the others, which are rare, PIL does."""


class FileImages:
    """Images in files of one size.

    Args:
        paths: a file for each sample.
        size: expected height and width in pixels.
        skip: leave out files that cannot be read, instead of raising.
        crop: images of other sizes are resized and cropped, see ``imagenet_crop``; otherwise they count as unreadable.
    """

    def __init__(self, paths: Sequence[Path], size: int, skip: bool, crop: bool = False) -> None:
        self.paths = paths
        self.size = size
        self.skip = skip
        self.crop = crop

    def __call__(self, index: Tensor) -> LoadedImages:
        """Decode the images of these indices into uint8 (n, 3, size, size), in channels-last memory."""
        pixels = np.empty((len(index), self.size, self.size, 3), np.uint8)
        kept: list[int] = []
        faults: list[str] = []
        for position, sample in enumerate(index.tolist()):
            try:
                self._decode(self.paths[sample], pixels[len(kept)])
                kept.append(position)
            except (OSError, ValueError, SyntaxError) as error:  # PIL raises SyntaxError for a broken PNG
                faults.append(f"{self.paths[sample]} ({error})")
        if faults and not self.skip:
            raise ValueError(
                f"{len(faults)} unreadable image(s) in a batch of {len(index)}: {'; '.join(faults)}. Fetch the data "
                "again, or leave such images out, counted, with stream.on_error=skip"
            )
        images = torch.from_numpy(pixels[: len(kept)]).permute(0, 3, 1, 2)
        return LoadedImages(images, torch.tensor(kept, dtype=torch.int64), tuple(faults))

    def cache_key(self, index: Tensor) -> str:
        """Name the images of these indices by their files' names, sizes and times of change."""
        name = hashlib.sha256(f"{self.size} {self.crop}".encode())
        for sample in index.tolist():
            path = self.paths[sample]
            try:
                found = path.stat()
                name.update(f"{path.parent.name}/{path.name} {found.st_size} {found.st_mtime_ns}\n".encode())
            except OSError:
                name.update(f"{path.parent.name}/{path.name} cannot be read\n".encode())
        return name.hexdigest()

    def _decode(self, path: Path, pixels: np.ndarray) -> None:
        try:
            rgb = read_rgb(path, None if self.crop else pixels)
        except UnidentifiedImageError:
            raise ValueError("not an image") from None
        if rgb is pixels:
            return
        if self.crop:
            rgb = np.asarray(imagenet_crop(Image.fromarray(rgb), self.size))
        if rgb.shape != pixels.shape:
            height, width = rgb.shape[:2]
            raise ValueError(f"{width}x{height} pixels instead of {self.size}x{self.size}")
        pixels[:] = rgb


def read_rgb(path: Path, pixels: np.ndarray | None = None) -> np.ndarray:
    """Decode a file as RGB, without regard to its orientation tag.

    Plain JPEG files go to libjpeg-turbo directly (simplejpeg). The pixels are those
    of PIL, all of them: both use the accurate inverse DCT and smooth chroma upsampling. Any other file, and any that
    the fast decoder has a word to say about, is PIL's.

    Args:
        path: of the file.
        pixels: uint8 (H, W, 3), written and returned if the fast decoder finds an image of that size.

    Returns:
        uint8 (H, W, 3).

    Raises:
        OSError: if the file cannot be read, or is no image.
        ValueError: if it is broken.
        SyntaxError: likewise, from PIL.
    """
    data = path.read_bytes()
    if data.startswith(JPEG):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours in FAST:
                fits = pixels is not None and pixels.shape[:2] == (height, width)
                rgb = simplejpeg.decode_jpeg(data, "RGB", buffer=pixels if fits else None)
                return pixels if pixels is not None and fits else rgb
        except ValueError:
            pass  # PIL may read it, or say what is wrong
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def imagenet_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to 8/7 of ``size`` and cut out the middle: 256 and 224, as ImageNet-C was made."""
    from torchvision.transforms.functional import center_crop, resize

    return center_crop(resize(image, size * 8 // 7), size)

"""Clean images with labels, from an ``.npz`` file or a folder of classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tta.checks import whole_number
from tta.streams.base import Loaded
from tta.streams.cifar import ArrayImages
from tta.streams.clean import are_images, read_npz
from tta.streams.imagenet import EXTENSIONS, FileImages, imagenet_classes


@dataclass(frozen=True)
class Labelled:
    """A data set of clean images.

    Args:
        load: reads the images of sample indices (n,).
        labels: int64 (N,), in [0, C).
        num_classes: C.
        size: height and width of the images in pixels.
        paths: the file of each image; none if they are in one array.
    """

    load: Callable[[Tensor], Loaded]
    labels: Tensor
    num_classes: int
    size: int
    paths: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """Digest of the labels, and of the names and sizes of the files or of all pixels."""
        content = hashlib.sha256(self.labels.numpy().tobytes())
        if isinstance(self.load, ArrayImages):
            content.update(np.ascontiguousarray(self.load.array).data)
        for path in self.paths:
            content.update(f"{path.name} {path.stat().st_size}\n".encode())
        return content.hexdigest()[:12]


def open_labelled(
    source: str | Path, size: int | None = None, num_classes: int | None = None, on_error: str = "stop"
) -> Labelled:
    """Open a data set of clean images.

    Args:
        source: an ``.npz`` file with ``images``, uint8 (N, S, S, 3), and ``labels`` (N,), or a folder with a folder of
            images for each class. If those are wnids of ImageNet's 1 000, a class is the place of its wnid among them,
            also when folders are missing; otherwise classes are numbered in alphabetical order.
        size: height and width that a folder's images are to have in pixels: their shorter side is resized to 8/7 of it
            and the middle cut out, 256 and 224 as ImageNet-C was made. By default they are taken as they are, and must
            be square and of the first one's size.
        num_classes: C; default: 1 000 for wnids, the number of folders, or one more than the highest label of a file.
        on_error: ``stop`` at a file that cannot be read, or ``skip`` and name it.

    Raises:
        FileNotFoundError: if there is no such file or folder, or no image in it.
        ValueError: for a wrong option, or if what is there is something else.
    """
    if on_error not in ("stop", "skip"):
        raise ValueError(f"stream.on_error must be stop or skip, got {on_error!r}")
    if size is not None:
        whole_number("stream.size", size, 1)
    path = Path(source).expanduser()
    if path.is_dir():
        found = _folder(path, size, on_error == "skip")
    elif path.is_file():
        found = _file(path, size)
    else:
        raise FileNotFoundError(
            f"stream.source: there is no {path}: expected an .npz file with the arrays images and labels, or a folder "
            "with a folder of images for each class"
        )
    if num_classes is None:
        return found
    highest = int(found.labels.max())
    whole_number("stream.num_classes", num_classes, 1)
    if num_classes <= highest:
        raise ValueError(f"stream.num_classes={num_classes}, but {path} has labels up to {highest}")
    return Labelled(found.load, found.labels, num_classes, found.size, found.paths)


def read_labelled(path: Path) -> tuple[np.ndarray, Tensor]:
    """Read an ``.npz`` file: images, uint8 (N, H, W, 3), and labels, int64 (N,).

    Raises:
        ValueError: if the file is no ``.npz`` or has other arrays.
    """
    images, labels = read_npz(path, "images", "labels")
    if not are_images(images) or labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{path}: expected images uint8 (N, H, W, 3) and labels of whole numbers (N,), got {images.dtype} "
            f"{images.shape} and {labels.dtype} {labels.shape}"
        )
    return images, torch.from_numpy(labels.astype(np.int64))


def _file(path: Path, size: int | None) -> Labelled:
    images, labels = read_labelled(path)
    height, width = images.shape[1:3]
    if not len(images) or height != width:
        raise ValueError(f"{path}: expected square images (N, S, S, 3), got {images.shape}")
    if size not in (None, height):
        raise ValueError(f"stream.size={size} is for folders; the images of {path} have {height}x{height} pixels")
    if int(labels.min()) < 0:
        raise ValueError(f"{path}: expected labels from 0, got {int(labels.min())}")
    return Labelled(ArrayImages(images), labels, int(labels.max()) + 1, height)


def _folder(root: Path, size: int | None, skip: bool) -> Labelled:
    folders = sorted(child for child in root.iterdir() if child.is_dir())
    wnids = imagenet_classes()
    known = [folder.name in wnids for folder in folders]
    if any(known) and not all(known):
        strange = folders[known.index(False)].name
        raise ValueError(f"{root}: {strange!r} is not one of ImageNet's 1 000 wnids, as other folders there are")
    classes = wnids if all(known) else {folder.name: number for number, folder in enumerate(folders)}
    files = [(file, classes[folder.name]) for folder in folders for file in _images(folder)]
    if not files:
        raise FileNotFoundError(f"stream.source: there are no images in {root}; expected <class>/*.JPEG in it")
    paths = [path for path, _ in files]
    load = FileImages(paths, size or _size_of(paths[0]), skip, crop=size is not None)
    return Labelled(load, torch.tensor([label for _, label in files]), len(classes), load.size, tuple(paths))


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)


def _size_of(path: Path) -> int:
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, ValueError, SyntaxError) as error:  # PIL raises SyntaxError for a broken PNG
        raise ValueError(f"{path} cannot be read ({error}): fetch it again, or delete it") from error
    if width != height:
        raise ValueError(f"{path} has {width}x{height} pixels: resize and crop the images with stream.size=<pixels>")
    return height

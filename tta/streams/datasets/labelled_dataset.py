"""Clean images with labels, from an ``.npz`` file or a folder of classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tta.streams.arrays import ArrayImages
from tta.streams.datasets.image_folder import Folders, list_images, read_subset
from tta.streams.datasets.source_images import are_images, read_npz
from tta.streams.files import FileImages
from tta.streams.label_spaces import ClassSubset, imagenet_classes, imagenet_subset, read_classes
from tta.streams.options import choose_on_error
from tta.streams.types import LoadedImages
from tta.utils.validation import check_int


@dataclass(frozen=True)
class Labelled:
    """A data set of clean images.

    Args:
        load: reads the images of sample indices (n,).
        labels: int64 (N,), in [0, C).
        num_classes: C.
        size: height and width of the images in pixels.
        paths: the file of each image; none if they are in one array.
        part: see ``Stream.classes``.
        subset: see ``Stream.subset``.
    """

    load: Callable[[Tensor], LoadedImages]
    labels: Tensor
    num_classes: int
    size: int
    paths: tuple[Path, ...] = ()
    part: ClassSubset | None = None
    subset: str | None = None

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
    source: str | Path,
    size: int | None = None,
    num_classes: int | None = None,
    on_error: str = "stop",
    classes: str | None = None,
    subset: str | None = None,
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
        classes: of a folder, see ``read_classes``. Wnids are a ``ClassSubset`` of ImageNet's 1 000, whose other
            folders are passed over; other names are all that there are. By default as above.
        subset: of a folder, see ``read_subset``.

    Raises:
        FileNotFoundError: if there is no such file or folder, or no image in it, or images of the subset are missing.
        ValueError: for a wrong option, or if what is there is something else.
    """
    skip = choose_on_error(on_error)
    if size is not None:
        check_int("stream.size", size, 1)
    path = Path(source).expanduser()
    if path.is_dir():
        found = _folder(path, size, skip, classes, subset)
    elif path.is_file():
        for key, value in (("classes", classes), ("subset", subset)):
            if value is not None:
                raise ValueError(f"stream.{key}={value} is for a folder of classes, but {path} is a file")
        found = _file(path, size)
    else:
        raise FileNotFoundError(
            f"stream.source: there is no {path}: expected an .npz file with the arrays images and labels, or a folder "
            "with a folder of images for each class"
        )
    return found if num_classes is None else _with_classes(found, path, num_classes, classes)


def _with_classes(found: Labelled, path: Path, num_classes: int, classes: str | None) -> Labelled:
    """Give a data set the number of classes that the user says."""
    highest = int(found.labels.max())
    check_int("stream.num_classes", num_classes, 1)
    if found.part is not None and num_classes != found.num_classes:
        raise ValueError(
            f"stream.num_classes={num_classes}, but stream.classes={classes} has {found.num_classes}: leave one out"
        )
    if num_classes <= highest:
        raise ValueError(f"stream.num_classes={num_classes}, but {path} has labels up to {highest}")
    if found.paths and num_classes > found.num_classes:
        raise ValueError(
            f"stream.num_classes={num_classes}, but {path} has {found.num_classes} classes, and which of the "
            f"{num_classes} they are their folders do not say: name the folders of all, missing ones too, in "
            "stream.classes=<text file with the name of a folder in each line>"
        )
    return replace(found, num_classes=num_classes)


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


def _folder(root: Path, size: int | None, skip: bool, classes: str | None, subset: str | None) -> Labelled:
    folders, part = _classes(root, classes)
    chosen = read_subset(subset)
    paths, labels = list_images(root, folders, chosen, key="stream.source")
    load = FileImages(paths, size or _size_of(paths[0]), skip, crop=size is not None)
    return Labelled(
        load, labels, len(folders.classes), load.size, tuple(paths), part, None if chosen is None else chosen.name
    )


def _classes(root: Path, classes: str | None) -> tuple[Folders, ClassSubset | None]:
    """Names of the folders of classes that there may be, and whether they are a part of more."""
    wnids = imagenet_classes()
    if classes is not None:
        index = read_classes(classes)
        of_imagenet = index.keys() & wnids
        if of_imagenet and len(of_imagenet) < len(index):
            strange = next(name for name in index if name not in wnids)
            raise ValueError(f"{classes}: {strange!r} is not one of ImageNet's 1 000 wnids, as other names there are")
        what = f"the {len(index)} names of stream.classes={classes}"
        if of_imagenet:
            return Folders(index, what, others=wnids.keys()), imagenet_subset(list(index))
        return Folders(index, what, "<class>"), None
    names = sorted(child.name for child in root.iterdir() if child.is_dir())
    if wnids.keys() & names:
        return Folders(wnids, "ImageNet's 1 000 wnids, as other folders there are"), None
    if all(name.isdecimal() for name in names) and names != sorted(names, key=int):
        raise ValueError(
            f"{root}: its folders are numbers, which as text are in another order than as numbers: say which folder is "
            "which class, with stream.classes=<text file with the name of a folder in each line>; for ImageNet-V2 take "
            "stream=imagenet_v2"
        )
    return Folders({name: number for number, name in enumerate(names)}, "its own folders", "<class>"), None


def _size_of(path: Path) -> int:
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, ValueError, SyntaxError) as error:  # PIL raises SyntaxError for a broken PNG
        raise ValueError(f"{path} cannot be read ({error}): fetch it again, or delete it") from error
    if width != height:
        raise ValueError(f"{path} has {width}x{height} pixels: resize and crop the images with stream.size=<pixels>")
    return height

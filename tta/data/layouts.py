"""Official layouts of the data sets on disk, and what a folder lacks of one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

EXTENSIONS = (".jpeg", ".jpg", ".png")
"""Of image files."""

SEVERITIES = ("1", "2", "3", "4", "5")

IMAGENET_V2 = ("matched-frequency", "threshold0.7", "top-images")
"""Versions of ImageNet-V2 (arXiv:1902.10811)."""


def imagenet_v2_folder(version: str) -> str:
    """Official folder of a version of ImageNet-V2."""
    return f"imagenetv2-{version}-format-val"


FOLDERS = {
    "cifar10": "cifar-10-batches-py",
    "cifar10_1": "CIFAR-10.1",
    "cifar10_c": "CIFAR-10-C",
    "cifar100_c": "CIFAR-100-C",
    "imagenet_c": "ImageNet-C",
    "imagenet_3dcc": "ImageNet-3DCC",
    "imagenet_r": "imagenet-r",
    "imagenet_a": "imagenet-a",
    "imagenet_v2": imagenet_v2_folder(IMAGENET_V2[0]),
    "imagenet_sketch": "sketch",
}
"""Official folder of each data set; of those with several versions, of the first."""

CORRUPTIONS_3D = (
    "near_focus", "far_focus", "fog_3d", "flash", "color_quant", "low_light", "xy_motion_blur", "z_motion_blur",
    "iso_noise", "bit_error", "h265_abr", "h265_crf",
)  # fmt: skip
"""Folders of ImageNet-3DCC (arXiv:2203.01441)."""

CIFAR10_1 = {"v6": 2000, "v4": 2021}
"""Images in each version of CIFAR-10.1."""


def cifar10_1_files(version: str) -> tuple[str, str]:
    """Names of the files with images and labels of a version of CIFAR-10.1."""
    return f"cifar10.1_{version}_data.npy", f"cifar10.1_{version}_labels.npy"


class Layout(Protocol):
    """What a folder must hold."""

    def problems(self, folder: Path, deep: bool) -> Iterator[str]:
        """Say what is missing or wrong in a folder, a phrase for each; nothing if it is complete.

        Args:
            folder: of the data set.
            deep: look at each image file too, which takes minutes for millions of them, not at folders alone.
        """


@dataclass(frozen=True)
class Arrays:
    """Images, uint8, and labels, whole numbers from 0 to ``classes`` - 1, in ``.npy`` files.

    Args:
        images: names of the files with images.
        labels: name of the file with their labels.
        shape: (N, H, W, 3) of the images; there are N labels.
        classes: how many.
    """

    images: tuple[str, ...]
    labels: str
    shape: tuple[int, ...]
    classes: int

    def problems(self, folder: Path, deep: bool) -> Iterator[str]:
        """See ``Layout``; the header of every file is read, and all labels."""
        for name in self.images:
            yield from self._check(folder / name, self.shape, "uint8")
        faults = list(self._check(folder / self.labels, self.shape[:1], None))
        yield from faults
        if not faults:
            labels = np.load(folder / self.labels)
            # Those of another data set with the same shapes would be too low.
            if labels.min() < 0 or labels.max() != self.classes - 1:
                yield (
                    f"{self.labels}: expected labels from 0 to {self.classes - 1}, got {labels.min()} to {labels.max()}"
                )

    @staticmethod
    def _check(path: Path, shape: tuple[int, ...], dtype: str | None) -> Iterator[str]:
        if not path.is_file():
            yield f"{path.name}: missing"
            return
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            yield f"{path.name}: truncated or no .npy file ({error})"
            return
        right = np.issubdtype(array.dtype, np.integer) if dtype is None else array.dtype == dtype
        if array.shape != shape or not right:
            yield f"{path.name}: expected {dtype or 'whole numbers'} {shape}, got {array.dtype} {array.shape}"


@dataclass(frozen=True)
class Files:
    """Files of at least so many bytes."""

    least: dict[str, int]

    def problems(self, folder: Path, deep: bool) -> Iterator[str]:
        """See ``Layout``."""
        for name, least in self.least.items():
            path = folder / name
            if not path.is_file():
                yield f"{name}: missing"
            elif path.stat().st_size < least:
                yield f"{name}: expected at least {least} bytes, got {path.stat().st_size}: truncated"


@dataclass(frozen=True)
class Images:
    """Image files in a folder for each class.

    Args:
        folders: that hold the folders of classes, each in five folders of severities; empty if the folder of the data
            set itself holds the classes.
        classes: how many folders of classes there must be.
        name: regular expression of the name of such a folder.
        each: images in each class; ``None`` if classes differ, or if that is not known.
        total: images in all classes; ``None`` if not known.
    """

    folders: tuple[str, ...] = ()
    classes: int = 1000
    name: str = r"n\d{8}"
    each: int | None = None
    total: int | None = None

    def problems(self, folder: Path, deep: bool) -> Iterator[str]:
        """See ``Layout``."""
        if not self.folders:
            yield from self._classes(folder, ".", deep)
        for name in self.folders:
            if not (folder / name).is_dir():
                yield f"{name}: missing"
                continue
            for severity in SEVERITIES:
                yield from self._classes(folder / name / severity, f"{name}/{severity}", deep)

    def _classes(self, folder: Path, shown: str, deep: bool) -> Iterator[str]:
        if not folder.is_dir():
            yield f"{shown}: missing"
            return
        with os.scandir(folder) as entries:
            classes = sorted(e.name for e in entries if re.fullmatch(self.name, e.name) and e.is_dir())
        if len(classes) != self.classes:
            yield f"{shown}: expected {self.classes} folders of classes, got {len(classes)}"
        elif deep:
            yield from self._count(folder, classes, shown)

    def _count(self, folder: Path, classes: list[str], shown: str) -> Iterator[str]:
        total = 0
        for name in classes:
            with os.scandir(folder / name) as entries:
                files = [e for e in entries if os.path.splitext(e.name)[1].lower() in EXTENSIONS]
                empty = sum(not entry.stat().st_size for entry in files)
            total += len(files)
            if empty:
                yield f"{shown}/{name}: {empty} of {len(files)} files are empty"
            elif self.each is not None and len(files) != self.each:
                yield f"{shown}/{name}: expected {self.each} images, got {len(files)}"
            elif not files:
                yield f"{shown}/{name}: expected images, got none"
        if self.total is not None and total != self.total:
            yield f"{shown}: expected {self.total} images, got {total}"

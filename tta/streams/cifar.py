"""CIFAR-10-C and CIFAR-100-C (arXiv:1903.12261) in their official layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tta.streams.base import Domain, Loaded, Stream
from tta.streams.choices import choose_corruptions, choose_severities

FOLDERS = {10: "CIFAR-10-C", 100: "CIFAR-100-C"}
SEVERITIES = 5


class ArrayImages:
    """Images in an array (N, H, W, 3) of uint8, in memory or memory-mapped."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __call__(self, index: Tensor) -> Loaded:
        """Read the images of these indices, as uint8 (n, 3, H, W) in channels-last memory."""
        images = torch.from_numpy(self.array[index.numpy()])
        return Loaded(images.permute(0, 3, 1, 2), torch.arange(len(index)))


def cifar_c(
    root: str,
    num_classes: int = 10,
    corruptions: str | Iterable[str] = "benchmark",
    severity: int | Sequence[int] = 5,
    batch_size: int = 200,
    limit: int | None = None,
    workers: int = 0,
    download: bool = False,
) -> Stream:
    """Make the stream of CIFAR-10-C or CIFAR-100-C.

    Args:
        root: folder with ``labels.npy`` and ``<corruption>.npy``, uint8 (5n, 32, 32, 3), severity s in rows
            [n(s-1), ns); or a folder that holds such a folder under its official name. n is 10 000 in the official
            files; it is taken from the labels.
        num_classes: 10 or 100.
        corruptions: see ``choose_corruptions``.
        severity: see ``choose_severities``.
        batch_size: see ``Stream``.
        limit: see ``Stream``.
        workers: see ``Stream``.
        download: fetch the data into ``root`` first where they are not there (2.9 GB, see ``tta.data``).

    Raises:
        FileNotFoundError: if the folder or a file is missing.
        ValueError: for a wrong option, or if a file is truncated, has another type or shape, or labels do not fit.
        OSError: if the data cannot be fetched.
    """
    if num_classes not in FOLDERS:
        raise ValueError(f"stream.num_classes must be one of {', '.join(map(str, FOLDERS))}; got {num_classes!r}")
    names = choose_corruptions(corruptions)
    severities = choose_severities(severity)
    folder = _find(Path(root).expanduser(), num_classes, download)
    labels = _labels(folder, num_classes)
    n = len(labels) // SEVERITIES
    domains = []
    for name in names:
        images = _images(folder, name, len(labels))
        for level in severities:
            rows = slice(n * (level - 1), n * level)
            domains.append(Domain(name, level, labels[rows], ArrayImages(images[rows])))
    return Stream(domains, num_classes, batch_size, limit, workers)


def _find(root: Path, num_classes: int, download: bool) -> Path:
    name = FOLDERS[num_classes]
    for folder in (root, root / name):
        if (folder / "labels.npy").is_file():
            return folder
    if download:
        return _download(root, f"cifar{num_classes}_c")
    what = "is empty" if root.is_dir() and not any(root.iterdir()) else "has no labels.npy"
    if not root.is_dir():
        what = "does not exist"
    raise FileNotFoundError(
        f"stream.root: expected {name} (labels.npy and one .npy for each corruption) in {root} or {root / name}, but "
        f"{root} {what}. Give the folder with stream.root=<folder>, or fetch the data with stream.download=true"
    )


def _download(root: Path, dataset: str) -> Path:
    from tta.data.obtain import get

    try:
        return get(dataset, root)
    except OSError as error:
        raise OSError(
            f"{dataset} could not be fetched: {error}. `tta-data get {dataset} --root {root}` does the same by itself; "
            "or give the folder where it is with stream.root"
        ) from error


def _labels(folder: Path, num_classes: int) -> Tensor:
    labels = _read(folder / "labels.npy")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or len(labels) % SEVERITIES or not len(labels):
        raise ValueError(
            f"{folder / 'labels.npy'}: expected whole numbers of shape (5n,), the same n labels for each of the 5 "
            f"severities, got {labels.dtype} {labels.shape}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{folder / 'labels.npy'}: expected labels from 0 to {num_classes - 1}, got {low} to {high}: is this a "
            "data set with another number of classes?"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _images(folder: Path, name: str, rows: int) -> np.ndarray:
    path = folder / f"{name}.npy"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.npy") if p.stem not in ("labels", "clean")))
        raise FileNotFoundError(f"{path} is missing; the corruptions there are: {there or 'none'}")
    images = _read(path)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3):
        raise ValueError(f"{path}: expected uint8 (5n, 32, 32, 3), got {images.dtype} {images.shape}")
    if len(images) != rows:
        raise ValueError(
            f"{path} has {len(images)} images, but labels.npy has {rows} labels: both must be of the same data set"
        )
    return images


def _read(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read, it is truncated or no .npy file ({error}): fetch it again") from error

"""CIFAR-10-C and CIFAR-100-C (arXiv:1903.12261), and CIFAR-10.1 (arXiv:1806.00451), in their official layouts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tta.data.layouts import CIFAR10_1, cifar10_1_files
from tta.data.layouts import FOLDERS as OFFICIAL
from tta.streams.arrays import ArrayImages
from tta.streams.options import choose_corruptions, choose_severities
from tta.streams.stream import Stream
from tta.streams.types import Domain

FOLDERS = {classes: OFFICIAL[f"cifar{classes}_c"] for classes in (10, 100)}
SEVERITIES = 5


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
    what = f"{FOLDERS[num_classes]} (labels.npy and one .npy for each corruption)"
    folder = _find(Path(root).expanduser(), f"cifar{num_classes}_c", ("labels.npy",), what, download)
    labels = _labels(folder / "labels.npy", num_classes, SEVERITIES)
    n = len(labels) // SEVERITIES
    domains = []
    for name in names:
        images = _images(_file(folder, name), len(labels), "labels.npy")
        for level in severities:
            rows = slice(n * (level - 1), n * level)
            domains.append(Domain(name, level, labels[rows], ArrayImages(images[rows])))
    return Stream(domains, num_classes, batch_size, limit, workers)


def cifar10_1(
    root: str,
    version: str = "v6",
    batch_size: int = 200,
    limit: int | None = None,
    workers: int = 0,
    download: bool = False,
) -> Stream:
    """Make the stream of CIFAR-10.1, new test images for the classes of CIFAR-10: one domain of severity 0.

    Args:
        root: folder with ``cifar10.1_<version>_data.npy``, uint8 (N, 32, 32, 3), and ``..._labels.npy``; or a folder
            that holds such a folder under its official name.
        version: ``v6``, 2 000 images, as many of each class (recommended by its authors), or ``v4``, 2 021.
        batch_size: see ``Stream``.
        limit: see ``Stream``.
        workers: see ``Stream``.
        download: fetch the data into ``root`` first where they are not there (a few MB, see ``tta.data``).

    Raises:
        FileNotFoundError: if the folder or a file is missing.
        ValueError: for a wrong option, or if a file is truncated, has another type or shape, or labels do not fit.
        OSError: if the data cannot be fetched.
    """
    if version not in CIFAR10_1:
        raise ValueError(f"stream.version must be one of {', '.join(CIFAR10_1)}; got {version!r}")
    data, names = cifar10_1_files(version)
    what = f"{OFFICIAL['cifar10_1']} ({data} and {names})"
    folder = _find(
        Path(root).expanduser(), "cifar10_1", (data, names), what, download, None if version == "v6" else version
    )
    labels = _labels(folder / names, 10)
    images = _images(folder / data, len(labels), names)
    return Stream([Domain(f"cifar10_1_{version}", 0, labels, ArrayImages(images))], 10, batch_size, limit, workers)


def _find(
    root: Path, dataset: str, files: tuple[str, ...], what: str, download: bool, parts: str | None = None
) -> Path:
    """Find the folder that has these files of a data set: the root, or its official folder in there."""
    name = OFFICIAL[dataset]
    for folder in (root, root / name):
        if all((folder / file).is_file() for file in files):
            return folder
    if download:
        return _download(root, dataset, parts)
    if not root.is_dir():
        there = "does not exist"
    elif not any(root.iterdir()):
        there = "is empty"
    else:
        there = f"has no {' and no '.join(file for file in files if not (root / file).is_file())}"
    raise FileNotFoundError(
        f"stream.root: expected {what} in {root} or {root / name}, but {root} {there}. Give the folder with "
        "stream.root=<folder>, or fetch the data with stream.download=true"
    )


def _download(root: Path, dataset: str, parts: str | None) -> Path:
    from tta.data.obtain import get

    try:
        return get(dataset, root, parts)
    except OSError as error:
        command = f"tta-data get {dataset} --root {root}{f' --parts {parts}' if parts else ''}"
        raise OSError(
            f"{dataset} could not be fetched: {error}. `{command}` does the same by itself; or give the folder where "
            "it is with stream.root"
        ) from error


def _labels(path: Path, num_classes: int, severities: int = 1) -> Tensor:
    labels = _read(path)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or len(labels) % severities or not len(labels):
        shape = f"(5n,), the same n labels for each of the {severities} severities" if severities > 1 else "(N,)"
        raise ValueError(f"{path}: expected whole numbers of shape {shape}, got {labels.dtype} {labels.shape}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{path}: expected labels from 0 to {num_classes - 1}, got {low} to {high}: is this a "
            "data set with another number of classes?"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _file(folder: Path, name: str) -> Path:
    path = folder / f"{name}.npy"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.npy") if p.stem not in ("labels", "clean")))
        raise FileNotFoundError(f"{path} is missing; the corruptions there are: {there or 'none'}")
    return path


def _images(path: Path, rows: int, labels: str) -> np.ndarray:
    images = _read(path)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3):
        raise ValueError(f"{path}: expected uint8 (N, 32, 32, 3), got {images.dtype} {images.shape}")
    if len(images) != rows:
        raise ValueError(
            f"{path} has {len(images)} images, but {labels} has {rows} labels: both must be of the same data set"
        )
    return images


def _read(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read, it is truncated or no .npy file ({error}): fetch it again") from error

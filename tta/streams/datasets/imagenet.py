"""ImageNet-C (arXiv:1903.12261) and ImageNet-3DCC (arXiv:2203.01441) in their official layouts."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tta.data.layouts import CORRUPTIONS_3D, FOLDERS
from tta.streams.datasets.image_folder import Folders, first_of, folders_in, list_images, read_subset
from tta.streams.files import FileImages
from tta.streams.label_spaces import imagenet_classes
from tta.streams.options import GROUPS, choose_corruptions, choose_on_error, choose_severities
from tta.streams.stream import Stream
from tta.streams.types import Domain

CORRUPTIONS_OF = {"imagenet_c": GROUPS, "imagenet_3dcc": {"benchmark": CORRUPTIONS_3D, "all": CORRUPTIONS_3D}}
"""Groups of corruptions in each data set; ``all`` is all of them."""


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
    cache: bool | str = False,
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
        cache: see ``Stream``.

    Warns:
        UserWarning: if domains differ in how many images of a class they have.

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
    _warn_of_gaps(domains)
    subset = None if chosen is None else chosen.name
    return Stream(domains, 1000, batch_size, limit, workers, subset=subset, cache=cache)


def _warn_of_gaps(domains: Sequence[Domain]) -> None:
    """Tell of images that some domains have and others lack, as after an archive that was not unpacked whole."""
    counts = torch.stack([domain.labels.bincount(minlength=1000) for domain in domains])
    lacking = counts.amax(0) - counts
    gaps = {str(domain): int(lacks.sum()) for domain, lacks in zip(domains, lacking, strict=True) if lacks.any()}
    if gaps:
        where = first_of([f"{number} in {name}" for name, number in gaps.items()], 4)
        wnids = [wnid for wnid, place in imagenet_classes().items() if lacking[:, place].any()]
        warnings.warn(
            f"images are missing that other domains have: {where}; of {len(wnids)} class(es): {first_of(wnids, 4)}. "
            "`tta-data verify` tells what is not there",
            stacklevel=3,
        )


def imagenet_folders() -> Folders:
    """Folders of ImageNet's 1 000 classes."""
    return Folders(imagenet_classes(), "ImageNet's 1 000 wnids (n01440764 ... n15075141)")


def _find(root: Path, name: str, severity: int) -> Path:
    candidates = [root / name, *sorted(root.glob(f"*/{name}"))]
    for folder in candidates:
        if (folder / str(severity)).is_dir():
            return folder / str(severity)
    found = next((folder for folder in candidates if folder.is_dir()), root)
    instead = "stream.corruptions" if found == root else "stream.severity"
    raise FileNotFoundError(
        f"stream.root: expected {root / name / str(severity)}/<wnid>/*.JPEG, which is not there; {found} holds "
        f"{folders_in(found)}. Give the folder with stream.root=<folder>, or choose what is there with {instead}"
    )

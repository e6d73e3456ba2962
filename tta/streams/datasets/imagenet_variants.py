"""Images that nobody corrupted: other test sets with ImageNet's classes, or any data set of the user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tta.data.catalogue import DATASETS
from tta.data.layouts import FOLDERS, IMAGENET_V2, imagenet_v2_folder
from tta.streams.datasets.image_folder import Folders, folders_in, list_images
from tta.streams.datasets.imagenet import imagenet_folders
from tta.streams.datasets.labelled_dataset import open_labelled
from tta.streams.files import FileImages
from tta.streams.label_spaces import PARTS, imagenet_subset, subset_classes
from tta.streams.options import choose_on_error
from tta.streams.stream import Stream
from tta.streams.types import Domain
from tta.utils.validation import check_int


def _part_folders(dataset: str, title: str) -> Folders:
    what = f"the 200 wnids of {title} (stream=clean takes these from among others with stream.classes={dataset})"
    return Folders(subset_classes(dataset), what)


@dataclass(frozen=True)
class _TestSet:
    title: str
    folders: Callable[[], Folders]


TEST_SETS = {
    "imagenet_r": _TestSet("ImageNet-R", lambda: _part_folders("imagenet_r", "ImageNet-R")),
    "imagenet_a": _TestSet("ImageNet-A", lambda: _part_folders("imagenet_a", "ImageNet-A")),
    # Numbers, which as text are in another order: "10" is before "2".
    "imagenet_v2": _TestSet(
        "ImageNet-V2", lambda: Folders({str(n): n for n in range(1000)}, "the class numbers 0 to 999", "<0 to 999>")
    ),
    "imagenet_sketch": _TestSet("ImageNet-Sketch", imagenet_folders),
}
"""ImageNet-R (arXiv:2006.16241), -A (arXiv:1907.07174), -V2 (arXiv:1902.10811), -Sketch (arXiv:1905.13549)."""


def imagenet_test_set(
    root: str,
    dataset: str,
    batch_size: int = 64,
    limit: int | None = None,
    workers: int = 2,
    on_error: str = "stop",
    size: int = 224,
    version: str | None = None,
    cache: bool | str = False,
) -> Stream:
    """Make the stream of another test set with classes of ImageNet: one domain of severity 0.

    The shorter side of an image is resized to 8/7 of ``size``, and the middle cut out: 256 and 224.

    ImageNet-R and -A have 200 classes, whose labels are 0 to 199, also when folders are missing: see ``ClassSubset``.

    Args:
        root: folder with the folders of classes, or one that holds it under its official name.
        dataset: one of ``TEST_SETS``.
        batch_size: see ``Stream``.
        limit: see ``Stream``.
        workers: see ``Stream``.
        on_error: ``stop`` at an image that cannot be read, or ``skip`` and count it.
        size: height and width that images get, in pixels.
        version: of ImageNet-V2, one of ``IMAGENET_V2``; the others have none.
        cache: see ``Stream``.

    Raises:
        FileNotFoundError: if the folder is missing or empty.
        ValueError: for a folder that is none of the data set's classes, or a wrong option.
    """
    if dataset not in TEST_SETS:
        raise ValueError(f"stream.dataset must be one of {', '.join(TEST_SETS)}; got {dataset!r}")
    name, official = dataset, FOLDERS[dataset]
    if dataset == "imagenet_v2":
        if version not in IMAGENET_V2:
            raise ValueError(f"stream.version must be one of {', '.join(IMAGENET_V2)}; got {version!r}")
        name, official = f"{dataset}_{version}", imagenet_v2_folder(version)
    skip = choose_on_error(on_error)
    check_int("stream.size", size, 1)
    test_set = TEST_SETS[dataset]
    folders = test_set.folders()
    folder = _find(Path(root).expanduser(), official, dataset, folders)
    paths, labels = list_images(folder, folders)
    part = imagenet_subset(list(folders.classes)) if dataset in PARTS else None
    images = FileImages(paths, size, skip, crop=True)
    domain = Domain(name, 0, labels, images)
    return Stream([domain], len(folders.classes), batch_size, limit, workers, part, cache=cache)


def clean(
    source: str,
    batch_size: int = 64,
    limit: int | None = None,
    workers: int = 2,
    size: int | None = None,
    num_classes: int | None = None,
    on_error: str = "stop",
    classes: str | None = None,
    subset: str | None = None,
    cache: bool | str = False,
) -> Stream:
    """Make a stream of clean images, as they are: one domain, ``clean``, of severity 0.

    Args:
        source: see ``open_labelled``.
        batch_size: see ``Stream``.
        limit: see ``Stream``.
        workers: see ``Stream``.
        size: see ``open_labelled``.
        num_classes: see ``open_labelled``.
        on_error: see ``open_labelled``.
        classes: see ``open_labelled``.
        subset: see ``open_labelled``.
        cache: see ``Stream``.

    Raises:
        FileNotFoundError: if the source is missing or empty, or images of the subset are missing.
        ValueError: for a wrong option, or if the source is something else.
    """
    data = open_labelled(source, size, num_classes, on_error, classes, subset)
    domain = Domain("clean", 0, data.labels, data.load)
    return Stream([domain], data.num_classes, batch_size, limit, workers, data.part, data.subset, cache)


def _find(root: Path, official: str, dataset: str, folders: Folders) -> Path:
    for folder in (root / official, root):
        if folder.is_dir() and (folder.name == official or any((folder / name).is_dir() for name in folders.classes)):
            return folder
    what = f"there is no {root}"
    if root.is_dir():
        what = f"{root} holds {folders_in(root)}"
    fetched = dataset in DATASETS and DATASETS[dataset].folder == official
    hint = f", or fetch the data with `tta-data get {dataset} --root {root}`" if fetched else ""
    raise FileNotFoundError(
        f"stream.root: expected {official}, or a folder with {folders.form}/*.JPEG, the classes of "
        f"{TEST_SETS[dataset].title}, but {what}. Give the folder with stream.root=<folder>{hint}"
    )

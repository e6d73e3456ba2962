"""Which files a folder of classes has, of what class each is, and a chosen part of them (``stream.subset``)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from tta.data.layouts import EXTENSIONS
from tta.streams.label_spaces import read_lines

ROBUSTBENCH_5K = "robustbench_5k"
"""The 5 000 images of ImageNet's validation set that RobustBench (arXiv:2010.09670) evaluates on."""


@dataclass(frozen=True)
class Subset:
    """A list of images.

    Args:
        name: for results; that of a user's list tells its content.
        files: folder of the class, and file, of each.
    """

    name: str
    files: tuple[tuple[str, str], ...]


def read_subset(subset: str | None) -> Subset | None:
    """Read ``stream.subset``.

    Args:
        subset: ``robustbench_5k``; or a text file with ``<class>/<file>`` in each line; ``None`` for all images.

    Raises:
        ValueError: if it is neither, or a line is something else or comes twice.
        FileNotFoundError: if RobustBench's list is not there.
    """
    if subset is None:
        return None
    file = str(_robustbench_list()) if subset == ROBUSTBENCH_5K else subset
    lines = read_lines(file, "stream.subset", f"null, {ROBUSTBENCH_5K}, or", "<class>/<file>")
    files = []
    for line in lines:
        folder, slash, name = line.partition("/")
        if not slash or "/" in name or not folder or not name or ".." in (folder, name):
            raise ValueError(f"stream.subset: {file} has a line {line!r}; expected <class>/<file>")
        files.append((folder, name))
    if subset == ROBUSTBENCH_5K:
        return Subset(subset, tuple(files))
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return Subset(f"{Path(file).stem}-{digest[:8]}", tuple(files))


def _robustbench_list() -> Path:
    """Find the list in the package, without importing it and what it needs."""
    spec = find_spec("robustbench")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"stream.subset={ROBUSTBENCH_5K} is a list of the package robustbench: install it")
    file = Path(spec.submodule_search_locations[0], "helper_files", "imagenet_test_image_ids.txt")
    if not file.is_file():
        raise FileNotFoundError(f"stream.subset={ROBUSTBENCH_5K}: the package robustbench has no {file}")
    return file


@dataclass(frozen=True)
class Folders:
    """The folders that classes have.

    Args:
        classes: index of each class, by the name of its folder.
        what: the names are, for messages.
        form: of such a name, for messages.
        others: names that are passed over.
    """

    classes: Mapping[str, int]
    what: str
    form: str = "<wnid>"
    others: Collection[str] = ()

    def check(self, name: str, place: str | Path) -> None:
        """Raise ``ValueError`` if a name is none of them."""
        if name not in self.classes and name not in self.others:
            raise ValueError(f"{place}: {name!r} is not one of {self.what}")


def folders_in(folder: Path, most: int = 20) -> str:
    """Name the folders in a folder, for messages; of very many, as a data set's classes are, the first."""
    there = sorted(child.name for child in folder.iterdir() if child.is_dir())
    return first_of(there, most) if there else "no folders"


def first_of(words: Sequence[str], most: int) -> str:
    """Name some of many, for messages."""
    return ", ".join(words[:most]) + " ..." * (len(words) > most)


def list_images(
    folder: Path, folders: Folders, subset: Subset | None = None, key: str = "stream.root"
) -> tuple[list[Path], Tensor]:
    """List the images in the folders of classes.

    The class of an image comes from the name of its folder alone, so that it is right also when folders are missing.

    Args:
        folder: has the folders of the classes.
        folders: their names.
        subset: take these images alone, in their order. By default all, class after class.
        key: of the configuration, that says where the folder is.

    Returns:
        Paths, and their classes, int64 (N,).

    Raises:
        FileNotFoundError: if there are no images, or images of the subset are missing.
        ValueError: for a folder of another name.
    """
    found = list(_all(folder, folders) if subset is None else _chosen(folder, folders, subset))
    if not found:
        raise FileNotFoundError(f"{key}: there are no images in {folder}; expected {folders.form}/*.JPEG in it")
    return [path for path, _ in found], torch.tensor([label for _, label in found])


def _all(folder: Path, folders: Folders) -> Iterator[tuple[Path, int]]:
    there = sorted(child.name for child in folder.iterdir() if child.is_dir())
    for name in there:
        folders.check(name, folder / name)
    for name in sorted(folders.classes.keys() & there, key=folders.classes.__getitem__):
        for path in sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in EXTENSIONS):
            yield path, folders.classes[name]


def _chosen(folder: Path, folders: Folders, subset: Subset) -> Iterator[tuple[Path, int]]:
    for name, _ in subset.files:
        folders.check(name, f"stream.subset={subset.name}")
    found = [(folder / name / file, folders.classes[name]) for name, file in subset.files if name in folders.classes]
    missing = [path for path, _ in found if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"stream.subset={subset.name}: {len(missing)} of its {len(found)} images are not in {folder}, the first "
            f"of them {missing[0].relative_to(folder)}; fetch the data again, or take what is there with "
            "stream.subset=null"
        )
    yield from found

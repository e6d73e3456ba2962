"""The classes of a stream: all those of ImageNet, a part of them, or names in an order of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

PARTS = ("imagenet_r", "imagenet_a")
"""Data sets with 200 of ImageNet's 1 000 classes each, which are not the same ones."""


@dataclass(frozen=True)
class ClassSubset:
    """A part of the classes of a larger data set; labels and logits count these alone.

    Args:
        class_ids: int64 (C,), of the classes among all, in the order of their labels.
        num_source_classes: how many classes there are in all.
    """

    class_ids: Tensor
    num_source_classes: int


@cache
def imagenet_classes() -> dict[str, int]:
    """Class index of each of ImageNet's 1 000 wnids: their place in alphabetical order."""
    from timm.data import ImageNetInfo

    return {wnid: number for number, wnid in enumerate(sorted(ImageNetInfo("imagenet-1k").label_names()))}


@cache
def subset_classes(name: str) -> dict[str, int]:
    """Class index of each of the 200 wnids of one of ``PARTS``: their place in alphabetical order."""
    import timm.data

    file = Path(timm.data.__file__).with_name("_info") / f"{name}_synsets.txt"
    return {wnid: number for number, wnid in enumerate(sorted(file.read_text().split()))}


def imagenet_subset(wnids: Sequence[str]) -> ClassSubset:
    """Describe these wnids, in this order, as a part of ImageNet's 1 000."""
    places = imagenet_classes()
    return ClassSubset(torch.tensor([places[wnid] for wnid in wnids]), len(places))


def read_classes(classes: str) -> dict[str, int]:
    """Read ``stream.classes``: names of folders with their class indices.

    Args:
        classes: one of ``PARTS``, or a text file with the name of a folder in each line, in the order of the classes.

    Raises:
        ValueError: if it is neither, or a name comes twice.
    """
    if classes in PARTS:
        return subset_classes(classes)
    names = read_lines(classes, "stream.classes", f"{', '.join(PARTS)}, or", "the name of a class's folder")
    return {name: number for number, name in enumerate(names)}


def read_lines(file: str, key: str, instead: str, line: str) -> list[str]:
    """Read a text file of the user's, without blank lines; no line may come twice.

    Args:
        file: its path.
        key: of the configuration, that names it.
        instead: what the key may also be, and a word that goes on to the file.
        line: what a line is.

    Raises:
        ValueError: if it is no text file, has no lines, or one twice.
    """
    path = Path(str(file)).expanduser()
    expected = f"{key} must be {instead} a text file with {line} in each line"
    try:
        lines = [text.strip() for text in path.read_text(encoding="utf-8").splitlines() if text.strip()]
    except (OSError, ValueError) as error:
        what = f"there is no file {file}" if not path.is_file() else f"{file} cannot be read ({error})"
        raise ValueError(f"{expected}; {what}") from None
    if not lines:
        raise ValueError(f"{expected}; {file} has none")
    if len(set(lines)) < len(lines):
        twice = next(text for number, text in enumerate(lines) if text in lines[:number])
        raise ValueError(f"{file} has {twice!r} twice ({len(lines) - len(set(lines))} such lines): leave one")
    return lines

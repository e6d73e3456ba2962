"""Clean images with labels, in files and in folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from helpers.errors import raises_naming
from tta.streams.datasets.labelled_dataset import Labelled, open_labelled

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 4, 0, 1], dtype=np.uint8)
WNIDS = ("n01440764", "n01443537", "n15075141")  # 0, 1 and 999 of the 1 000


def npz(folder: Path, images: np.ndarray = PIXELS, labels: np.ndarray = LABELS) -> Path:
    np.savez(folder / "clean.npz", images=images, labels=labels)
    return folder / "clean.npz"


def tree(root: Path, names: tuple[str, ...] = WNIDS, size: tuple[int, int] = (20, 20), count: int = 2) -> Path:
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for k in range(count):
            pixels = np.random.default_rng([number, k]).integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k}.png")
    return root


def everything(data: Labelled) -> torch.Tensor:
    return data.load(torch.arange(len(data.labels))).images


def test_npz__gives_its_images_and_labels(tmp_path: Path) -> None:
    data = open_labelled(npz(tmp_path))
    assert np.array_equal(everything(data).permute(0, 2, 3, 1).numpy(), PIXELS)
    assert (data.labels.dtype, data.labels.tolist()) == (torch.int64, LABELS.tolist())
    assert (data.num_classes, data.size, data.paths) == (5, 8, ())
    assert open_labelled(npz(tmp_path), num_classes=10).num_classes == 10


def test_wnids__are_classes_of_imagenet(tmp_path: Path) -> None:
    data = open_labelled(tree(tmp_path))
    assert data.labels.tolist() == [0, 0, 1, 1, 999, 999]
    assert (data.num_classes, data.size) == (1000, 20)
    assert [path.parent.name for path in data.paths] == [name for name in WNIDS for _ in range(2)]
    expected = np.random.default_rng([2, 1]).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    assert np.array_equal(everything(data)[5].permute(1, 2, 0).numpy(), expected)


def test_folders__are_classes_in_alphabetical_order(tmp_path: Path) -> None:
    data = open_labelled(tree(tmp_path, ("dog", "cat", "ant")))
    assert (data.labels.tolist(), data.num_classes) == ([0, 0, 1, 1, 2, 2], 3)


def test_folders__of_some_classes_need_their_names(tmp_path: Path) -> None:
    folder, names = tree(tmp_path / "tree", ("dog", "cat", "ant")), tmp_path / "names.txt"
    with raises_naming(ValueError, "stream.num_classes=5", folder, 3, "stream.classes"):
        open_labelled(folder, num_classes=5)
    names.write_text("ant\nbee\ncat\ncow\ndog\n")
    data = open_labelled(folder, num_classes=5, classes=str(names))
    assert (data.labels.tolist(), data.num_classes) == ([0, 0, 2, 2, 4, 4], 5)
    assert [path.parent.name for path in data.paths[::2]] == ["ant", "cat", "dog"]


def test_folder__is_cropped_as_imagenets_validation_set(tmp_path: Path) -> None:
    data = open_labelled(tree(tmp_path, size=(90, 60)), size=28)
    as_usual = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(28), transforms.PILToTensor()])
    assert torch.equal(everything(data), torch.stack([as_usual(Image.open(path)) for path in data.paths]))
    assert data.size == 28


def test_name__is_of_the_content(tmp_path: Path) -> None:
    name = open_labelled(npz(tmp_path)).name
    (tmp_path / "elsewhere").mkdir()
    assert open_labelled(npz(tmp_path / "elsewhere")).name == name
    changed = PIXELS.copy()
    changed[5, 7, 7, 2] ^= 1
    assert open_labelled(npz(tmp_path, changed)).name != name
    assert open_labelled(npz(tmp_path, labels=LABELS[::-1])).name != name
    folder = tree(tmp_path / "tree")
    name = open_labelled(folder).name
    (folder / WNIDS[0] / "0.png").rename(folder / WNIDS[0] / "00.png")
    assert open_labelled(folder).name != name


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"on_error": "ignore"}, ("stream.on_error", "stop", "skip", "'ignore'")),
        ({"size": 0}, ("stream.size", 1, 0)),
        ({"size": 16}, ("stream.size=16", "clean.npz", "8x8")),
        ({"num_classes": 4}, ("stream.num_classes=4", "clean.npz", 4)),
        ({"num_classes": "ten"}, ("stream.num_classes", "'ten'")),
    ],
)
def test_labelled__rejects_wrong_options(tmp_path: Path, options: dict[str, Any], named: tuple[object, ...]) -> None:
    with raises_naming(ValueError, *named):
        open_labelled(npz(tmp_path), **options)


@pytest.mark.parametrize(
    ("images", "labels", "named"),
    [
        (PIXELS[:, :4], LABELS, ("(N, S, S, 3)", "(6, 4, 8, 3)")),
        (PIXELS[:0], LABELS[:0], ("(N, S, S, 3)", "(0, 8, 8, 3)")),
        (PIXELS, LABELS.astype(int) - 1, (0, -1)),
        (PIXELS, LABELS[:5], ("(6, 8, 8, 3)", "(5,)")),
    ],
)
def test_npz__wrong_arrays_are_rejected(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, named: tuple[object, ...]
) -> None:
    file = npz(tmp_path, images, labels)
    with raises_naming(ValueError, file, *named):
        open_labelled(file)


def test_labelled__missing_data_are_named(tmp_path: Path) -> None:
    with raises_naming(FileNotFoundError, "stream.source", tmp_path / "x.npz"):
        open_labelled(tmp_path / "x.npz")
    with raises_naming(FileNotFoundError, "stream.source", tmp_path, "<class>/*.JPEG"):
        open_labelled(tmp_path)


def test_folders__wnids_stand_alone(tmp_path: Path) -> None:
    with raises_naming(ValueError, tmp_path / "cat", "'cat'"):
        open_labelled(tree(tmp_path, ("cat", *WNIDS)))


def test_folder__needs_images_of_one_square_size(tmp_path: Path) -> None:
    with raises_naming(ValueError, "0.png", "30x20", "stream.size"):
        open_labelled(tree(tmp_path / "oblong", size=(20, 30)))
    folder = tree(tmp_path / "mixed")
    Image.new("RGB", (24, 24)).save(folder / WNIDS[1] / "0.png")
    with raises_naming(ValueError, folder / WNIDS[1] / "0.png", "24x24", "20x20"):
        everything(open_labelled(folder))


def test_folder__unreadable_first_image_is_named(tmp_path: Path) -> None:
    folder = tree(tmp_path)
    (folder / WNIDS[0] / "0.png").write_bytes(b"<html>")
    with raises_naming(ValueError, folder / WNIDS[0] / "0.png"):
        open_labelled(folder)
    assert len(open_labelled(folder, size=14, on_error="skip").load(torch.arange(6)).kept) == 5

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from tta.streams.labelled import Labelled, open_labelled

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


def test_a_file_gives_its_images_and_labels(tmp_path: Path) -> None:
    data = open_labelled(npz(tmp_path))
    assert np.array_equal(everything(data).permute(0, 2, 3, 1).numpy(), PIXELS)
    assert (data.labels.dtype, data.labels.tolist()) == (torch.int64, LABELS.tolist())
    assert (data.num_classes, data.size, data.paths) == (5, 8, ())
    assert open_labelled(npz(tmp_path), num_classes=10).num_classes == 10


def test_wnids_are_classes_of_imagenet_also_when_some_are_missing(tmp_path: Path) -> None:
    data = open_labelled(tree(tmp_path))
    assert data.labels.tolist() == [0, 0, 1, 1, 999, 999]
    assert (data.num_classes, data.size) == (1000, 20)
    assert [path.parent.name for path in data.paths] == [name for name in WNIDS for _ in range(2)]
    expected = np.random.default_rng([2, 1]).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    assert np.array_equal(everything(data)[5].permute(1, 2, 0).numpy(), expected)


def test_other_folders_are_classes_in_alphabetical_order(tmp_path: Path) -> None:
    data = open_labelled(tree(tmp_path, ("dog", "cat", "ant")))
    assert (data.labels.tolist(), data.num_classes) == ([0, 0, 1, 1, 2, 2], 3)


def test_folders_of_fewer_classes_than_there_are_have_to_be_named(tmp_path: Path) -> None:
    folder, names = tree(tmp_path / "tree", ("dog", "cat", "ant")), tmp_path / "names.txt"
    with pytest.raises(ValueError, match=r"num_classes=5, but .*tree has 3 classes, and .* stream.classes=<text file"):
        open_labelled(folder, num_classes=5)
    names.write_text("ant\nbee\ncat\ncow\ndog\n")
    data = open_labelled(folder, num_classes=5, classes=str(names))
    assert (data.labels.tolist(), data.num_classes) == ([0, 0, 2, 2, 4, 4], 5)
    assert [path.parent.name for path in data.paths[::2]] == ["ant", "cat", "dog"]


def test_resized_and_cropped_as_imagenets_validation_images(tmp_path: Path) -> None:
    data = open_labelled(tree(tmp_path, size=(90, 60)), size=28)
    as_usual = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(28), transforms.PILToTensor()])
    assert torch.equal(everything(data), torch.stack([as_usual(Image.open(path)) for path in data.paths]))
    assert data.size == 28


def test_name_is_of_the_content(tmp_path: Path) -> None:
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
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "stream.on_error must be stop or skip, got 'ignore'"),
        ({"size": 0}, "stream.size must be a whole number of at least 1, got 0"),
        ({"size": 16}, "stream.size=16 is for folders; the images of .*npz have 8x8 pixels"),
        ({"num_classes": 4}, "stream.num_classes=4, but .* has labels up to 4"),
        ({"num_classes": "ten"}, "stream.num_classes must be a whole number"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_labelled(npz(tmp_path), **options)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (PIXELS[:, :4], LABELS, r"expected square images \(N, S, S, 3\), got \(6, 4, 8, 3\)"),
        (PIXELS[:0], LABELS[:0], r"expected square images \(N, S, S, 3\), got \(0, 8, 8, 3\)"),
        (PIXELS, LABELS.astype(int) - 1, "expected labels from 0, got -1"),
        (PIXELS, LABELS[:5], r"got uint8 \(6, 8, 8, 3\) and uint8 \(5,\)"),
    ],
)
def test_wrong_arrays(tmp_path: Path, images: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_labelled(npz(tmp_path, images, labels))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"stream.source: there is no .*x.npz: expected an .npz file with"):
        open_labelled(tmp_path / "x.npz")
    with pytest.raises(FileNotFoundError, match=r"there are no images in .*; expected <class>/\*.JPEG"):
        open_labelled(tmp_path)


def test_folders_that_are_only_partly_wnids(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'cat' is not one of ImageNet's 1 000 wnids, as other folders there are"):
        open_labelled(tree(tmp_path, ("cat", *WNIDS)))


def test_images_of_other_sizes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0.png has 30x20 pixels: resize and crop the images with stream.size=<p"):
        open_labelled(tree(tmp_path / "oblong", size=(20, 30)))
    folder = tree(tmp_path / "mixed")
    Image.new("RGB", (24, 24)).save(folder / WNIDS[1] / "0.png")
    with pytest.raises(ValueError, match="24x24 pixels instead of 20x20"):
        everything(open_labelled(folder))


def test_a_first_image_that_cannot_be_read(tmp_path: Path) -> None:
    folder = tree(tmp_path)
    (folder / WNIDS[0] / "0.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"0.png cannot be read \(cannot identify image file"):
        open_labelled(folder)
    assert len(open_labelled(folder, size=14, on_error="skip").load(torch.arange(6)).kept) == 5

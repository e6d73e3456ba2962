"""ImageNet-C and ImageNet-3DCC: classes, pixels, and images that cannot be read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.errors import assert_names, raises_naming
from tta.data.layouts import CORRUPTIONS_3D
from tta.models import timm_backbone
from tta.streams import Batch, Scenario, Stream
from tta.streams.datasets.imagenet import imagenet_c
from tta.streams.files import FileImages

PLACES = (0, 1, 500, 999)  # of the classes in the small tree, among the 1 000


def source(shared: Path) -> list[Path]:
    folders = sorted((shared / "data" / "imagenet-224-1000").iterdir())
    assert len(folders) == 1000
    return folders


def picture(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


@pytest.fixture
def root(shared: Path, tmp_path: Path) -> Path:
    """Four of the 1 000 classes under gaussian_noise at severity 5, two copies of one image each."""
    for place in PLACES:
        folder = source(shared)[place]
        target = tmp_path / "gaussian_noise" / "5" / folder.name
        target.mkdir(parents=True)
        for name in ("a.JPEG", "b.jpg"):
            shutil.copy(picture(folder), target / name)
    return tmp_path


def read(root: Path, **options: Any) -> list[Batch]:
    stream = make(root, **options)
    return list(stream.batches(stream.plan(Scenario(order="file"), 0)))


def make(root: Path, **options: Any) -> Stream:
    return imagenet_c(str(root), **{"corruptions": "gaussian_noise", "workers": 0, **options})


def folder_of(root: Path, number: int) -> Path:
    return sorted((root / "gaussian_noise" / "5").iterdir())[number]


def test_imagenet_c__classes_are_places_among_the_1000(root: Path) -> None:
    """Also when folders are missing."""
    (batch,) = read(root)
    assert batch.labels.tolist() == [place for place in PLACES for _ in range(2)]
    assert make(root).num_classes == 1000


def test_imagenet_c__pixels_are_those_of_the_file(root: Path) -> None:
    (batch,) = read(root)
    assert (batch.images.dtype, tuple(batch.images.shape)) == (torch.uint8, (8, 3, 224, 224))
    with Image.open(folder_of(root, 2) / "b.jpg") as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(batch.images[5].permute(1, 2, 0).numpy(), expected)


def test_imagenet_c__finds_folders_in_groups(root: Path) -> None:
    (root / "noise").mkdir()
    (root / "gaussian_noise").rename(root / "noise" / "gaussian_noise")
    assert make(root).domains[0].labels.tolist() == [place for place in PLACES for _ in range(2)]


@pytest.mark.filterwarnings("ignore:images are missing")
def test_imagenet_c__severities_take_their_folders(root: Path) -> None:
    other = root / "gaussian_noise" / "4" / folder_of(root, 3).name
    shutil.copytree(folder_of(root, 3), other)
    domains = make(root, severity=[4, 5, 4]).domains
    assert [(domain.severity, len(domain.labels)) for domain in domains] == [(4, 2), (5, 8), (4, 2)]
    paths = [domain.load.paths for domain in domains if isinstance(domain.load, FileImages)]
    assert {path.parent for path in paths[0]} == {other}
    assert paths[2] is paths[0]  # listed once


def test_imagenet_c__warns_of_images_missing_in_part(root: Path) -> None:
    shutil.copytree(root / "gaussian_noise", root / "fog")
    shutil.copytree(root / "gaussian_noise", root / "snow")
    both = {"corruptions": ["fog", "snow", "gaussian_noise"]}
    make(root, **both)  # nothing to tell
    classes = [folder_of(root, number).name for number in range(4)]
    shutil.rmtree(root / "fog" / "5" / classes[1])
    (root / "fog" / "5" / classes[2] / "a.JPEG").unlink()
    (root / "snow" / "5" / classes[2] / "b.jpg").unlink()
    with pytest.warns(UserWarning) as told:  # noqa: PT030
        stream = make(root, **both)
    assert_names(str(told[0].message), "3 in fog-5", "1 in snow-5", classes[1], classes[2])
    assert "gaussian_noise" not in str(told[0].message)
    assert [len(domain.labels) for domain in stream.domains] == [5, 7, 8]


def test_imagenet_c__passes_over_other_files(root: Path) -> None:
    (folder_of(root, 0) / "notes.txt").write_text("no image")
    with Image.open(folder_of(root, 0) / "a.JPEG") as image:
        image.convert("L").save(folder_of(root, 0) / "c.png")
    (batch,) = read(root)
    assert batch.labels.tolist() == [0, 0, 0, 1, 1, 500, 500, 999, 999]
    assert torch.equal(batch.images[2, 0], batch.images[2, 2])  # grey


def spoil(root: Path) -> list[Path]:
    """A text file, a truncated image, one of another size, a dead link: one in each class."""
    files = [folder_of(root, number) / "a.JPEG" for number in range(4)]
    files[0].write_text("no image")
    files[1].write_bytes(files[1].read_bytes()[:2000])
    Image.new("RGB", (100, 50)).save(files[2])
    files[3].unlink()
    files[3].symlink_to("nowhere")
    return files


@pytest.mark.parametrize("workers", [0, 2])
def test_imagenet_c__unreadable_images_are_named(root: Path, workers: int) -> None:
    files = spoil(root)
    with raises_naming(ValueError, 4, *files, "100x50", "224x224", "stream.on_error=skip") as caught:
        read(root, workers=workers)
    assert "Traceback" not in str(caught.value)


def test_imagenet_c__skips_unreadable_images(root: Path) -> None:
    (intact,) = read(root)
    files = spoil(root)
    (batch,) = read(root, on_error="skip")
    assert batch.index.tolist() == [1, 3, 5, 7]
    assert batch.labels.tolist() == list(PLACES)
    assert torch.equal(batch.images, intact.images[[1, 3, 5, 7]])
    assert [name.partition(" (")[0] for _, name in batch.skipped] == [str(file) for file in files]
    alone = read(root, on_error="skip", batch_size=1)[0]
    assert tuple(alone.images.shape) == (0, 3, 224, 224)
    assert (len(alone.labels), len(alone.index), len(alone.skipped)) == (0, 0, 1)


def test_imagenet_c__broken_png_is_unreadable_too(root: Path) -> None:
    file = folder_of(root, 0) / "c.png"
    Image.new("RGB", (224, 224)).save(file)
    data = file.read_bytes()
    file.write_bytes(data[:40] + b"\0\0\0\0" + data[44:])
    (batch,) = read(root, on_error="skip")
    assert (len(batch.index), len(batch.skipped)) == (8, 1)


def test_imagenet_c__wrong_folders_are_named(root: Path) -> None:
    with raises_naming(FileNotFoundError, root / "gaussian_noise" / "3", "stream.root", "stream.severity"):
        make(root, severity=3)
    with raises_naming(FileNotFoundError, root / "fog" / "5", "gaussian_noise", "stream.corruptions"):
        make(root, corruptions="fog")
    with raises_naming(FileNotFoundError, "stream.root", root / "nowhere"):
        make(root / "nowhere")
    (root / "gaussian_noise" / "5" / "tench").mkdir()
    with raises_naming(ValueError, "'tench'"):
        make(root)
    shutil.rmtree(root / "gaussian_noise" / "5")
    with raises_naming(FileNotFoundError, root, "gaussian_noise"):
        make(root)
    (root / "gaussian_noise" / "5").mkdir()
    with raises_naming(FileNotFoundError, root / "gaussian_noise" / "5", "<wnid>/*.JPEG"):
        make(root)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"on_error": "ignore"}, ("stream.on_error", "stop", "skip", "'ignore'")),
        ({"severity": 6}, ("stream.severity", 1, 5, 6)),
        ({"corruptions": "fogg"}, ("stream.corruptions", "'fogg'", "fog")),
        ({"corruptions": "fog", "dataset": "imagenet_3dcc"}, ("'fog'", "fog_3d", "near_focus", "h265_crf")),
        ({"corruptions": "extra", "dataset": "imagenet_3dcc"}, ("'extra'", "benchmark", "all")),
        ({"dataset": "imagenet_4dcc"}, ("stream.dataset", "imagenet_c", "imagenet_3dcc", "'imagenet_4dcc'")),
    ],
)
def test_imagenet_c__rejects_wrong_options(tmp_path: Path, options: dict[str, Any], named: tuple[object, ...]) -> None:
    with raises_naming(ValueError, *named):
        make(tmp_path, **options)


def test_imagenet_c__real_images_and_weights_agree(shared: Path, tmp_path: Path) -> None:
    """A wrong order of classes, decoding or normalisation would cost the accuracy."""
    severity = tmp_path / "gaussian_noise" / "5"
    severity.mkdir(parents=True)
    for folder in source(shared):
        (severity / folder.name).symlink_to(folder, target_is_directory=True)
    weights = shared / "models" / "tf_efficientnet_lite0_imagenet.safetensors"
    backbone = timm_backbone("tf_efficientnet_lite0", checkpoint=str(weights)).eval()
    assert backbone.normalization == {"mean": [0.5] * 3, "std": [0.5] * 3}
    (batch,) = read(tmp_path, limit=40)
    with torch.inference_mode():
        hits = (backbone(batch.images.float() / 255).argmax(1) == batch.labels).sum()
    assert hits >= 28


def test_imagenet_3dcc__has_corruptions_of_its_own(root: Path) -> None:
    for name in CORRUPTIONS_3D:
        (root / name).symlink_to(root / "gaussian_noise")
    for group in ("benchmark", "all"):
        stream = make(root, corruptions=group, dataset="imagenet_3dcc")
        assert [domain.name for domain in stream.domains] == list(CORRUPTIONS_3D)
    assert len(set(CORRUPTIONS_3D)) == 12
    (domain,) = make(root, corruptions="iso_noise", dataset="imagenet_3dcc").domains
    assert (domain.name, domain.labels.tolist()) == ("iso_noise", [place for place in PLACES for _ in range(2)])
    with raises_naming(FileNotFoundError, root / "nowhere", "ImageNet-3DCC"):
        make(root / "nowhere", corruptions="all", dataset="imagenet_3dcc")

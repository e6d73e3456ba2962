from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tta.backbones import timm_backbone
from tta.data.layouts import CORRUPTIONS_3D
from tta.streams import Batch, Scenario, Stream
from tta.streams.files import FileImages
from tta.streams.imagenet import imagenet_c

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


def test_class_is_the_place_among_the_1000_also_when_folders_are_missing(root: Path) -> None:
    (batch,) = read(root)
    assert batch.labels.tolist() == [place for place in PLACES for _ in range(2)]
    assert make(root).num_classes == 1000


def test_pixels_are_those_of_the_file(root: Path) -> None:
    (batch,) = read(root)
    assert (batch.images.dtype, tuple(batch.images.shape)) == (torch.uint8, (8, 3, 224, 224))
    with Image.open(folder_of(root, 2) / "b.jpg") as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(batch.images[5].permute(1, 2, 0).numpy(), expected)


def test_group_folder_between_is_accepted(root: Path) -> None:
    (root / "noise").mkdir()
    (root / "gaussian_noise").rename(root / "noise" / "gaussian_noise")
    (batch,) = read(root)
    assert len(batch.index) == 8


@pytest.mark.filterwarnings("ignore:images are missing")
def test_severities_one_after_another_take_their_folders(root: Path) -> None:
    other = root / "gaussian_noise" / "4" / folder_of(root, 3).name
    shutil.copytree(folder_of(root, 3), other)
    domains = make(root, severity=[4, 5, 4]).domains
    assert [(domain.severity, len(domain.labels)) for domain in domains] == [(4, 2), (5, 8), (4, 2)]
    paths = [domain.load.paths for domain in domains if isinstance(domain.load, FileImages)]
    assert {path.parent for path in paths[0]} == {other}
    assert paths[2] is paths[0]  # listed once


def test_what_a_domain_lacks_of_the_others_is_told(root: Path) -> None:
    shutil.copytree(root / "gaussian_noise", root / "fog")
    shutil.copytree(root / "gaussian_noise", root / "snow")
    both = {"corruptions": ["fog", "snow", "gaussian_noise"]}
    make(root, **both)  # nothing to tell
    classes = [folder_of(root, number).name for number in range(4)]
    shutil.rmtree(root / "fog" / "5" / classes[1])
    (root / "fog" / "5" / classes[2] / "a.JPEG").unlink()
    (root / "snow" / "5" / classes[2] / "b.jpg").unlink()
    told = (
        "images are missing that other domains have: 3 in fog-5, 1 in snow-5; of 2 class(es): "
        f"{classes[1]}, {classes[2]}. `tta-data verify` tells"
    )
    with pytest.warns(UserWarning, match=re.escape(told)):
        stream = make(root, **both)
    assert [len(domain.labels) for domain in stream.domains] == [5, 7, 8]


def test_other_files_and_grey_images(root: Path) -> None:
    (folder_of(root, 0) / "notes.txt").write_text("no image")
    with Image.open(folder_of(root, 0) / "a.JPEG") as image:
        image.convert("L").save(folder_of(root, 0) / "c.png")
    (batch,) = read(root)
    assert batch.labels.tolist() == [0, 0, 0, 1, 1, 500, 500, 999, 999]
    assert torch.equal(batch.images[2, 0], batch.images[2, 2])


def spoil(root: Path) -> list[Path]:
    """A text file, a truncated image, one of another size, a dead link: one in each class."""
    files = [folder_of(root, number) / "a.JPEG" for number in range(4)]
    files[0].write_text("no image")
    files[1].write_bytes(files[1].read_bytes()[:2000])
    Image.new("RGB", (100, 50)).save(files[2])
    files[3].unlink()
    files[3].symlink_to("nowhere")
    return files


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_named_and_counted(root: Path, workers: int) -> None:
    files = spoil(root)
    with pytest.raises(ValueError, match=r"\A4 unreadable image\(s\) in a batch of 8: .*stream.on_error=skip") as error:
        read(root, workers=workers)
    text = str(error.value)
    assert all(str(file) in text for file in files)
    assert "(not an image)" in text
    assert "truncated" in text
    assert "(100x50 pixels instead of 224x224)" in text
    assert "Traceback" not in text


def test_skip_drops_unreadable_images_and_keeps_the_rest_aligned(root: Path) -> None:
    (intact,) = read(root)
    files = spoil(root)
    (batch,) = read(root, on_error="skip")
    assert batch.index.tolist() == [1, 3, 5, 7]
    assert batch.labels.tolist() == list(PLACES)
    assert torch.equal(batch.images, intact.images[[1, 3, 5, 7]])
    assert [name.partition(" (")[0] for _, name in batch.skipped] == [str(file) for file in files]


def test_batch_of_unreadable_images_alone_is_empty(root: Path) -> None:
    spoil(root)
    batch = read(root, on_error="skip", batch_size=1)[0]
    assert tuple(batch.images.shape) == (0, 3, 224, 224)
    assert len(batch.labels) == len(batch.index) == 0
    assert len(batch.skipped) == 1


def test_broken_png_is_unreadable_too(root: Path) -> None:
    file = folder_of(root, 0) / "c.png"
    Image.new("RGB", (224, 224)).save(file)
    data = file.read_bytes()
    file.write_bytes(data[:40] + b"\0\0\0\0" + data[44:])
    (batch,) = read(root, on_error="skip")
    assert len(batch.index) == 8
    assert len(batch.skipped) == 1


def test_folder_that_is_no_wnid(root: Path) -> None:
    (root / "gaussian_noise" / "5" / "tench").mkdir()
    with pytest.raises(ValueError, match="'tench' is not one of ImageNet's 1 000 wnids"):
        make(root)


def test_folder_without_images(root: Path) -> None:
    shutil.rmtree(root / "gaussian_noise" / "5")
    (root / "gaussian_noise" / "5").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there are no images in .*5; expected <wnid>/\*.JPEG in it"):
        make(root)


def test_missing_severity_names_those_there(root: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"expected .*gaussian_noise/3/<wnid>.*gaussian_noise holds 5\. .*with stream.severity$"
    ):
        make(root, severity=3)


def test_missing_corruption_names_those_there(root: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"expected .*fog/5/<wnid>.* holds gaussian_noise\. .*stream.corruptions$"
    ):
        make(root, corruptions="fog")


def test_missing_and_empty_root(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"stream.root: there is no folder .*nowhere; expected <root>"):
        make(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no folders"):
        make(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "stream.on_error must be stop or skip, got 'ignore'"),
        ({"severity": 6}, "stream.severity must be a whole number from 1 to 5, got 6"),
        ({"corruptions": "fogg"}, "did you mean fog"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **options)


def test_real_images_and_weights_agree(shared: Path, tmp_path: Path) -> None:
    """Order of classes, decoding and normalisation: were one of them wrong, the accuracy would not be had."""
    severity = tmp_path / "gaussian_noise" / "5"
    severity.mkdir(parents=True)
    for folder in source(shared):
        (severity / folder.name).symlink_to(folder, target_is_directory=True)
    weights = shared / "models" / "tf_efficientnet_lite0_imagenet.safetensors"
    backbone = timm_backbone("tf_efficientnet_lite0", checkpoint=str(weights)).eval()
    assert backbone.normalization == {"mean": [0.5] * 3, "std": [0.5] * 3}
    hits = 0
    for batch in read(tmp_path, limit=200, batch_size=20):
        with torch.inference_mode():
            hits += int((backbone(batch.images.float() / 255).argmax(1) == batch.labels).sum())
    assert hits / 200 > 0.7


def test_3dcc_has_corruptions_of_its_own(root: Path) -> None:
    for name in CORRUPTIONS_3D:
        (root / name).symlink_to(root / "gaussian_noise")
    for group in ("benchmark", "all"):
        stream = make(root, corruptions=group, dataset="imagenet_3dcc")
        assert [domain.name for domain in stream.domains] == list(CORRUPTIONS_3D)
        assert len({domain.name for domain in stream.domains}) == 12
    (batch,) = read(root, corruptions="iso_noise", dataset="imagenet_3dcc")
    assert (batch.domain, batch.labels.tolist()) == ("iso_noise", [place for place in PLACES for _ in range(2)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruptions": "fog"}, "no corruption 'fog'; did you mean fog_3d[?] Choose from: near_focus, .*h265_crf"),
        ({"corruptions": "extra"}, "no corruption 'extra'.*one of the groups benchmark, all$"),
        ({"dataset": "imagenet_4dcc"}, "stream.dataset must be one of imagenet_c, imagenet_3dcc; got 'imagenet_4dcc'"),
    ],
)
def test_wrong_options_of_3dcc(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(root, **{"dataset": "imagenet_3dcc", **options})
    with pytest.raises(FileNotFoundError, match=r"no folder .*of ImageNet-3DCC"):
        make(root / "nowhere", corruptions="all", dataset="imagenet_3dcc")

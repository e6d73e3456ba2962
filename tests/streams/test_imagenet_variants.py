"""Test sets with classes of ImageNet, in trees of their official layouts; and clean images of any kind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torchvision import transforms

from helpers.errors import raises_naming
from tta.data.layouts import FOLDERS, Images
from tta.models import timm_backbone
from tta.streams import Batch, Scenario, Stream
from tta.streams.datasets.imagenet_variants import TEST_SETS, clean, imagenet_test_set
from tta.streams.label_spaces import PARTS, imagenet_classes, subset_classes

WNIDS = list(imagenet_classes())
R, A = (list(subset_classes(name)) for name in PARTS)


def image(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def tree(root: Path, names: list[str], each: int = 1) -> Path:
    """Images in folders of these names; the first pixel values tell the number of the folder and the image."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for k in range(each):
            Image.fromarray(image(each * number + k)).save(root / name / f"{k}.png")
    return root


def make(root: Path, dataset: str, **options: Any) -> Stream:
    if dataset == "imagenet_v2":
        options = {"version": "matched-frequency", **options}
    return imagenet_test_set(str(root), dataset, **{"workers": 0, "size": 28, **options})


def read(stream: Stream) -> list[Batch]:
    return list(stream.batches(stream.plan(Scenario(order="file"), 0)))


def test_parts__are_the_200_of_the_published_masks() -> None:
    """The first of them, as the official evaluation codes of -R and -A have them; all of them, by timm's own lists."""
    for name, wnids, first in (("imagenet_r", R, [1, 2, 4, 6, 8, 9, 11]), ("imagenet_a", A, [6, 11, 13, 15, 17, 22])):
        places = [imagenet_classes()[wnid] for wnid in wnids]
        assert places[: len(first)] == first
        file = Path(timm.data.__file__).parent / "_info" / f"{name}_indices.txt"
        assert places == [int(line) for line in file.read_text().split()]
    for wnids in (R, A):
        assert len(wnids) == len(set(wnids)) == 200
        assert wnids == sorted(wnids)
    assert len(set(R) & set(A)) not in (0, 200)
    descriptions = ImageNetInfo("imagenet-1k")
    assert descriptions.label_name_to_description(R[0]).startswith("goldfish")


@pytest.mark.parametrize(("dataset", "wnids"), [("imagenet_r", R), ("imagenet_a", A)])
def test_parts__labels_are_places_in_the_part(tmp_path: Path, dataset: str, wnids: list[str]) -> None:
    """Also when folders are missing."""
    places = [199, 0, 5, 120]
    root = tree(tmp_path / FOLDERS[dataset], [wnids[place] for place in places], each=2)
    (root / "README.txt").write_text("as in the archives")
    stream = make(tmp_path, dataset)
    (batch,) = read(stream)
    assert batch.labels.tolist() == [0, 0, 5, 5, 120, 120, 199, 199]
    assert stream.num_classes == 200
    assert stream.classes is not None
    assert (stream.classes.num_source_classes, len(stream.classes.class_ids)) == (1000, 200)
    assert [WNIDS[place] for place in stream.classes.class_ids.tolist()] == wnids
    assert [(domain.name, domain.severity) for domain in stream.domains] == [(dataset, 0)]
    assert torch.equal(read(make(root, dataset))[0].images, batch.images)  # the folder itself


def test_imagenet_v2__folders_are_numbers_not_text(tmp_path: Path) -> None:
    """As text, 10 and 11 come before 2."""
    tree(tmp_path / "imagenetv2-matched-frequency-format-val", [str(number) for number in range(12)])
    stream = make(tmp_path, "imagenet_v2")
    (batch,) = read(stream)
    assert batch.labels.tolist() == list(range(12))
    as_usual = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(28), transforms.PILToTensor()])
    for label, pixels in zip(batch.labels.tolist(), batch.images, strict=True):
        assert torch.equal(pixels, as_usual(Image.fromarray(image(label))))
    assert (stream.num_classes, stream.classes) == (1000, None)


def test_imagenet_v2__versions_have_their_folders(tmp_path: Path) -> None:
    tree(tmp_path / "imagenetv2-top-images-format-val", ["3"])
    (domain,) = make(tmp_path, "imagenet_v2", version="top-images").domains
    assert domain.name == "imagenet_v2_top-images"
    with raises_naming(FileNotFoundError, "imagenetv2-threshold0.7-format-val", "stream.root") as caught:
        make(tmp_path, "imagenet_v2", version="threshold0.7")
    assert "tta-data" not in str(caught.value)  # which fetches one version only
    with raises_naming(FileNotFoundError, "stream.root", f"tta-data get imagenet_v2 --root {tmp_path}"):
        make(tmp_path, "imagenet_v2")


def test_imagenet_sketch__has_the_1000(tmp_path: Path) -> None:
    for folder in (tmp_path / "sketch", tmp_path / "drawings"):
        tree(folder, [WNIDS[place] for place in (999, 3, 17)])
    for root in (tmp_path, tmp_path / "drawings"):
        stream = make(root, "imagenet_sketch")
        assert stream.domains[0].labels.tolist() == [3, 17, 999]
        assert (stream.num_classes, stream.classes) == (1000, None)


def test_folders__are_those_downloads_are_checked_for(tmp_path: Path) -> None:
    for dataset, names in (("imagenet_r", R), ("imagenet_v2", [str(number) for number in range(1000)])):
        root = tmp_path / dataset
        for name in names:
            (root / name).mkdir(parents=True)
        layout = Images(classes=len(names), name=r"\d{1,3}" if dataset == "imagenet_v2" else r"n\d{8}")
        assert not list(layout.problems(root, deep=False))
        assert TEST_SETS[dataset].folders().classes.keys() == set(names)


def test_test_set__unreadable_image_is_named_or_skipped(tmp_path: Path) -> None:
    root = tree(tmp_path, R[:4])
    (root / R[2] / "0.png").write_bytes(b"<html>")
    with raises_naming(ValueError, root / R[2] / "0.png", "stream.on_error=skip"):
        read(make(root, "imagenet_r"))
    (batch,) = read(make(root, "imagenet_r", on_error="skip"))
    assert batch.labels.tolist() == [0, 1, 3]
    assert len(batch.skipped) == 1


def test_test_set__folder_of_another_is_named(tmp_path: Path) -> None:
    other = next(wnid for wnid in A if wnid not in R)
    root = tree(tmp_path / "data", [R[0], other])
    with raises_naming(ValueError, repr(other), "ImageNet-R"):
        make(root, "imagenet_r")
    for number in ("1000", "007"):
        root = tree(tmp_path / number, ["0", number])
        with raises_naming(ValueError, root / number, repr(number), 0, 999):
            make(root, "imagenet_v2")


def test_test_set__missing_data_are_named(tmp_path: Path) -> None:
    with raises_naming(FileNotFoundError, "stream.root", "imagenet-r", tmp_path / "x", "tta-data get"):
        make(tmp_path / "x", "imagenet_r")
    with raises_naming(FileNotFoundError, "stream.root", "ImageNet-A", tmp_path):
        make(tmp_path, "imagenet_a")
    for name in "abcdefghijklmnopqrstuvw":
        (tmp_path / name).mkdir()
    with raises_naming(FileNotFoundError, "a, b, c", "s, t") as caught:
        make(tmp_path, "imagenet_sketch")
    assert "t, u" not in str(caught.value)  # the first twenty will do
    (tmp_path / "imagenet-a" / A[0]).mkdir(parents=True)
    with raises_naming(FileNotFoundError, tmp_path / "imagenet-a", "<wnid>/*.JPEG"):
        make(tmp_path, "imagenet_a")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dataset": "imagenet_x"}, ("stream.dataset", *TEST_SETS, "'imagenet_x'")),
        ({"dataset": "imagenet_v2", "version": "v1"}, ("stream.version", "matched-frequency", "'v1'")),
        ({"on_error": "ignore"}, ("stream.on_error", "stop", "skip", "'ignore'")),
        ({"size": 0}, ("stream.size", 1, 0)),
    ],
)
def test_test_set__rejects_wrong_options(tmp_path: Path, options: dict[str, Any], named: tuple[object, ...]) -> None:
    with raises_naming(ValueError, *named):
        make(tmp_path, **{"dataset": "imagenet_r", **options})


def test_clean__images_are_as_they_are(tmp_path: Path) -> None:
    pixels = np.stack([image(k)[:32, :32] for k in range(6)])
    np.savez(tmp_path / "x.npz", images=pixels, labels=np.array([0, 1, 2, 3, 0, 1]))
    stream = clean(str(tmp_path / "x.npz"), num_classes=10, workers=0)
    (batch,) = read(stream)
    assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), pixels)
    assert batch.labels.tolist() == [0, 1, 2, 3, 0, 1]
    assert (stream.num_classes, stream.classes, stream.subset) == (10, None, None)
    assert [(domain.name, domain.severity) for domain in stream.domains] == [("clean", 0)]


def test_clean__images_of_a_part_of_imagenet(tmp_path: Path) -> None:
    root = tree(tmp_path / "val", [WNIDS[0], *R[:2], R[199]])
    assert read(clean(str(root), size=28, workers=0))[0].labels.tolist() == [0, 1, 2, WNIDS.index(R[199])]
    stream = clean(str(root), size=28, workers=0, classes="imagenet_r")
    assert read(stream)[0].labels.tolist() == [0, 1, 199]
    assert stream.num_classes == 200
    assert stream.classes is not None
    assert stream.classes.class_ids.tolist() == [WNIDS.index(wnid) for wnid in R]
    # The images and labels of ImageNet-R's stream, if it had these.
    shutil.rmtree(root / WNIDS[0])
    assert torch.equal(read(stream)[0].images, read(make(root, "imagenet_r"))[0].images)


def test_clean__digest_is_of_the_part_too(tmp_path: Path) -> None:
    root = tree(tmp_path / "val", [WNIDS[2], WNIDS[5]])
    (tmp_path / "one.txt").write_text(f"{WNIDS[2]}\n{WNIDS[5]}\n")
    (tmp_path / "two.txt").write_text(f"{WNIDS[2]}\n{WNIDS[5]}\n{WNIDS[9]}\n")
    digests = {
        clean(str(root), size=28, workers=0, classes=classes).digest
        for classes in (None, str(tmp_path / "one.txt"), str(tmp_path / "two.txt"))
    }
    assert len(digests) == 3


def test_parts__real_images_and_weights_agree(shared: Path, tmp_path: Path) -> None:
    """A wrong order of the part, or logits not restricted to it, would cost the accuracy."""
    weights = shared / "models" / "tf_efficientnet_lite0_imagenet.safetensors"
    for name, wnids in (("imagenet_r", R), ("imagenet_a", A)):
        for wnid in wnids:
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / wnid).symlink_to(shared / "data" / "imagenet-224-1000" / wnid)
        stream = make(tmp_path / name, name, size=224, limit=20)
        backbone = timm_backbone("tf_efficientnet_lite0", checkpoint=str(weights)).eval()
        assert stream.classes is not None
        backbone.restrict_classes(stream.classes.class_ids, stream.classes.num_source_classes)
        (batch,) = read(stream)
        with torch.inference_mode():
            hits = (backbone(batch.images.float() / 255).argmax(1) == batch.labels).sum()
        assert hits >= 16, name

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from tta import demo
from tta.streams.clean import CleanImages, clean_images

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 6, 4, 3), dtype=np.uint8)


def npz(folder: Path, pixels: np.ndarray = PIXELS, **more: np.ndarray) -> str:
    np.savez(folder / "clean.npz", images=pixels, **more)  # type: ignore[arg-type]
    return str(folder / "clean.npz")


def image_folder(folder: Path, count: int = 12, classes: int = 3, size: tuple[int, int] = (8, 8)) -> str:
    for number in range(count):
        place = folder / f"class{number % classes}" if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:02}.png")
    return str(folder)


def all_of(images: CleanImages) -> torch.Tensor:
    return torch.cat(list(images))


def keys(images: Any) -> list[bytes]:
    return [np.ascontiguousarray(image).tobytes() for image in images]


def test_batches_of_an_npz_are_its_images_in_a_fixed_order(tmp_path: Path) -> None:
    images = clean_images(npz(tmp_path), batch_size=8)
    assert [tuple(batch.shape) for batch in images] == [(8, 3, 6, 4)] * 3 + [(6, 3, 6, 4)]
    assert all_of(images).dtype == torch.uint8
    found = keys(all_of(images).permute(0, 2, 3, 1).numpy())
    assert sorted(found) == sorted(keys(PIXELS))
    assert found != keys(PIXELS)
    torch.manual_seed(3)
    assert torch.equal(all_of(clean_images(npz(tmp_path), batch_size=8)), all_of(images))
    assert torch.equal(all_of(clean_images(npz(tmp_path), batch_size=5)), all_of(images))  # of any batch size
    assert torch.equal(all_of(clean_images(npz(tmp_path), limit=10, batch_size=8)), all_of(images)[:10])


def test_labels_are_not_looked_at(tmp_path: Path) -> None:
    alone = clean_images(npz(tmp_path))
    digest = alone.digest
    assert clean_images(npz(tmp_path, labels=np.arange(30))).digest == digest


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(9, 8, [8]), (10, 8, [8, 2]), (3, 2, [2]), (8, 8, [8])])
def test_a_last_batch_of_one_image_is_left_out(tmp_path: Path, count: int, batch_size: int, sizes: list[int]) -> None:
    images = clean_images(npz(tmp_path, PIXELS[:count]), batch_size=batch_size)
    assert [len(batch) for batch in images] == sizes
    assert len(images) == sum(sizes)


def test_digest_is_of_the_chosen_images_wherever_they_are(tmp_path: Path) -> None:
    first = clean_images(npz(tmp_path), limit=10)
    (tmp_path / "elsewhere").mkdir()
    assert clean_images(npz(tmp_path / "elsewhere"), limit=10).digest == first.digest
    assert clean_images(npz(tmp_path), limit=11).digest != first.digest
    last = int(first.chosen[-1])
    changed = PIXELS.copy()
    changed[last, 0, 0, 0] ^= 1
    assert clean_images(npz(tmp_path, changed), limit=10).digest != first.digest
    reshaped = PIXELS.reshape(30, 4, 6, 3)
    assert clean_images(npz(tmp_path, reshaped), limit=10).digest != first.digest


@pytest.mark.parametrize("classes", [0, 3], ids=["flat", "classes"])
def test_a_folder_is_read_with_or_without_classes(tmp_path: Path, classes: int) -> None:
    images = clean_images(image_folder(tmp_path / "clean", classes=classes), batch_size=8)
    (tmp_path / "clean" / "readme.txt").write_text("not an image")
    expected = [np.random.default_rng(n).integers(0, 256, (8, 8, 3), dtype=np.uint8) for n in range(12)]
    assert sorted(keys(all_of(images).permute(0, 2, 3, 1).numpy())) == sorted(keys(expected))
    assert [len(batch) for batch in images] == [8, 4]
    digest = images.digest
    moved = (tmp_path / "clean").rename(tmp_path / "moved")
    assert clean_images(str(moved), batch_size=8).digest == digest


def test_folders_of_classes_may_be_links(tmp_path: Path) -> None:
    image_folder(tmp_path / "store")
    (tmp_path / "clean").mkdir()
    (tmp_path / "clean" / "class").symlink_to(tmp_path / "store" / "class0")
    assert len(clean_images(str(tmp_path / "clean"))) == 4


def test_reading_waits_for_its_turn(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "clean", classes=0)
    images = clean_images(root, batch_size=4)
    batches = iter(images)
    next(batches)
    for path in Path(root).iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"\.png cannot be read \(cannot identify image file.*fetch it again"):
        next(batches)


def test_resized_and_cropped_as_imagenet_c_was_made(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "clean", count=2, classes=0, size=(90, 60))
    images = clean_images(root, size=28)
    as_usual = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(28), transforms.PILToTensor()])
    expected = torch.stack([as_usual(Image.open(Path(root) / f"{n:02}.png")) for n in images.chosen.tolist()])
    assert torch.equal(all_of(images), expected)
    assert images.digest != clean_images(root).digest


def test_grey_images_become_three_channels(tmp_path: Path) -> None:
    for number in range(2):
        Image.new("L", (5, 5), 100).save(tmp_path / f"{number}.jpg")
    assert all_of(clean_images(str(tmp_path))).float().mean() == 100


def test_images_of_several_sizes(tmp_path: Path) -> None:
    image_folder(tmp_path, count=4, classes=0)
    Image.new("RGB", (9, 7)).save(tmp_path / "00.png")
    with pytest.raises(ValueError, match=r"one size are needed: .*\d\.png has \dx\d .*method.fisher.size=<pixels>"):
        list(clean_images(str(tmp_path)))
    assert all_of(clean_images(str(tmp_path), size=5)).shape == (4, 3, 5, 5)


def test_demo_is_the_digits_that_the_backbone_was_trained_on() -> None:
    images = clean_images("demo")
    assert len(images) == 2000
    assert sorted(keys(all_of(images).numpy())) == sorted(keys(demo.split(trained=True)[0].numpy()))


def test_real_images(shared: Path) -> None:
    images = clean_images(str(shared / "data" / "imagenet-224-1000"), limit=10, batch_size=8)
    assert [tuple(batch.shape) for batch in images] == [(8, 3, 224, 224), (2, 3, 224, 224)]


def test_no_root() -> None:
    with pytest.raises(ValueError, match=r"needs clean images .*labels are not used.*method.fisher.root=<folder of"):
        clean_images()


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"method.fisher.root: there is no .*nowhere: expected a folder of im"):
        clean_images(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"method.fisher.root: there are no images \(.jpeg, .jpg, .png\) in"):
        clean_images(str(tmp_path))


def test_an_npz_of_something_else(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=PIXELS)
    with pytest.raises(ValueError, match=r"x.npz: expected one with|expected the array images, got x"):
        clean_images(str(tmp_path / "x.npz"))
    with pytest.raises(ValueError, match=r"expected images uint8 \(N, H, W, 3\), got float64 \(30, 6, 4, 3\)"):
        clean_images(npz(tmp_path, PIXELS / 255))
    (tmp_path / "web.npz").write_text("<html>")
    with pytest.raises(ValueError, match=r"is truncated or no .npz file: expected one with the array images$"):
        clean_images(str(tmp_path / "web.npz"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 1}, "method.fisher.limit must be a whole number of at least 2, got 1"),
        ({"batch_size": 1}, "method.fisher.batch_size must be a whole number of at least 2, got 1"),
        ({"size": 0}, "method.fisher.size must be a whole number of at least 1, got 0"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clean_images(npz(tmp_path), **options)


def test_a_single_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"method.fisher.root has 1 image\(s\), at least 2 are needed"):
        clean_images(npz(tmp_path, PIXELS[:1]))

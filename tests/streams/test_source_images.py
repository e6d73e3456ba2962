"""Clean images of the source domain: which are chosen, in which batches, and where from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from helpers.errors import raises_naming
from tta.streams.datasets import demo
from tta.streams.datasets.source_images import CleanImages, clean_images

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


def test_clean_images__come_in_one_fixed_order(tmp_path: Path) -> None:
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


def test_clean_images__last_batch_of_one_is_left_out(tmp_path: Path) -> None:
    for count, batch_size, sizes in ((9, 8, [8]), (10, 8, [8, 2]), (3, 2, [2]), (8, 8, [8])):
        images = clean_images(npz(tmp_path, PIXELS[:count]), batch_size=batch_size)
        assert [len(batch) for batch in images] == sizes
        assert len(images) == sum(sizes)


def test_clean_images__digest_is_of_the_chosen_ones(tmp_path: Path) -> None:
    first = clean_images(npz(tmp_path), limit=10)
    (tmp_path / "elsewhere").mkdir()
    labels = np.arange(30)  # count for nothing
    assert clean_images(npz(tmp_path / "elsewhere", labels=labels), limit=10).digest == first.digest
    assert clean_images(npz(tmp_path), limit=11).digest != first.digest
    last = int(first.chosen[-1])
    changed = PIXELS.copy()
    changed[last, 0, 0, 0] ^= 1
    assert clean_images(npz(tmp_path, changed), limit=10).digest != first.digest
    reshaped = PIXELS.reshape(30, 4, 6, 3)
    assert clean_images(npz(tmp_path, reshaped), limit=10).digest != first.digest


@pytest.mark.parametrize("classes", [0, 3], ids=["flat", "classes"])
def test_clean_images__folder_with_or_without_classes(tmp_path: Path, classes: int) -> None:
    images = clean_images(image_folder(tmp_path / "clean", classes=classes), batch_size=8)
    (tmp_path / "clean" / "readme.txt").write_text("not an image")
    expected = [np.random.default_rng(n).integers(0, 256, (8, 8, 3), dtype=np.uint8) for n in range(12)]
    assert sorted(keys(all_of(images).permute(0, 2, 3, 1).numpy())) == sorted(keys(expected))
    assert [len(batch) for batch in images] == [8, 4]
    digest = images.digest
    moved = (tmp_path / "clean").rename(tmp_path / "moved")
    assert clean_images(str(moved), batch_size=8).digest == digest
    if classes:  # which may be links
        (tmp_path / "links").mkdir()
        (tmp_path / "links" / "class").symlink_to(moved / "class0")
        assert len(clean_images(str(tmp_path / "links"))) == 4


def test_clean_images__are_read_at_their_turn(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "clean", classes=0)
    images = clean_images(root, batch_size=4)
    batches = iter(images)
    next(batches)
    for path in Path(root).iterdir():
        path.write_bytes(b"")
    with raises_naming(ValueError, root, ".png"):
        next(batches)


def test_clean_images__are_resized_as_imagenet_c_was(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "clean", count=2, classes=0, size=(90, 60))
    images = clean_images(root, size=28)
    as_usual = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(28), transforms.PILToTensor()])
    expected = torch.stack([as_usual(Image.open(Path(root) / f"{n:02}.png")) for n in images.chosen.tolist()])
    assert torch.equal(all_of(images), expected)
    assert images.digest != clean_images(root).digest


def test_clean_images__grey_ones_get_three_channels(tmp_path: Path) -> None:
    for number in range(2):
        Image.new("L", (5, 5), 100).save(tmp_path / f"{number}.jpg")
    found = all_of(clean_images(str(tmp_path)))
    assert found.shape == (2, 3, 5, 5)
    assert (found == 100).all()


def test_clean_images__several_sizes_need_one(tmp_path: Path) -> None:
    image_folder(tmp_path, count=4, classes=0)
    Image.new("RGB", (9, 7)).save(tmp_path / "00.png")
    with raises_naming(ValueError, "9x7", "8x8", "method.fisher.size"):
        list(clean_images(str(tmp_path)))
    assert all_of(clean_images(str(tmp_path), size=5)).shape == (4, 3, 5, 5)


def test_clean_images__demo_is_its_training_digits() -> None:
    images = clean_images("demo")
    assert len(images) == 2000
    assert sorted(keys(all_of(images).numpy())) == sorted(keys(demo.split(trained=True)[0].numpy()))


def test_clean_images__are_found_in_a_real_folder(shared: Path) -> None:
    images = clean_images(str(shared / "data" / "imagenet-224-1000"), limit=10, batch_size=8)
    assert [tuple(batch.shape) for batch in images] == [(8, 3, 224, 224), (2, 3, 224, 224)]


def test_clean_images__missing_ones_are_named(tmp_path: Path) -> None:
    with raises_naming(ValueError, "method.fisher.root"):
        clean_images()
    with raises_naming(FileNotFoundError, "method.fisher.root", tmp_path / "nowhere"):
        clean_images(str(tmp_path / "nowhere"))
    with raises_naming(FileNotFoundError, "method.fisher.root", tmp_path, ".jpeg", ".jpg", ".png"):
        clean_images(str(tmp_path))


def test_clean_images__rejects_another_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=PIXELS)
    with raises_naming(ValueError, "x.npz", "images"):
        clean_images(str(tmp_path / "x.npz"))
    with raises_naming(ValueError, "uint8", "(N, H, W, 3)", "float64", "(30, 6, 4, 3)"):
        clean_images(npz(tmp_path, PIXELS / 255))
    (tmp_path / "web.npz").write_text("<html>")
    with raises_naming(ValueError, "web.npz", "images"):
        clean_images(str(tmp_path / "web.npz"))


def test_clean_images__rejects_too_small_numbers(tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [{"limit": 1}, {"batch_size": 1}, {"size": 0}]
    for options in wrong:
        ((key, value),) = options.items()
        with raises_naming(ValueError, f"method.fisher.{key}", value + 1, value):
            clean_images(npz(tmp_path), **options)
    with raises_naming(ValueError, "method.fisher.root", 1, 2):
        clean_images(npz(tmp_path, PIXELS[:1]))

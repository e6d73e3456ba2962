"""Decoding of images: the pixels are those of PIL, whoever decodes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from helpers.errors import assert_names, raises_naming
from tta.streams.files import FileImages, read_rgb


def by_pil(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with edges and noise, so that every part of a decoder has something to do."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 5, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(coarse) + rng.normal(0, 12, (height, width, 3))
    pixels[height // 2 :] = 255 - pixels[height // 2 :]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def forbid_pil(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise AssertionError(f"PIL was asked for {path}")

    monkeypatch.setattr(Image, "open", refuse)


@settings(deadline=None, max_examples=30)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0", "4:1:1"]),
    progressive=st.booleans(),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    keep_rgb=st.booleans(),
)
def test_read_rgb__jpeg_has_the_pixels_of_pil(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, mode: str, keep_rgb: bool, **options: Any
) -> None:
    file = tmp_path_factory.mktemp("jpeg") / "a.JPEG"
    if keep_rgb and mode == "RGB":
        options = {"quality": options["quality"], "keep_rgb": True}
    photograph(width, height).convert(mode).save(file, "JPEG", **options)
    assert np.array_equal(read_rgb(file), by_pil(file))


def test_file_images__photographs_do_not_need_pil(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sorted((shared / "data" / "imagenet-224-1000").glob("*/*.JPEG"))[::100]
    expected = [by_pil(path) for path in paths]
    assert len(expected) == 10
    forbid_pil(monkeypatch)
    (images, kept, skipped) = FileImages(paths, 224, skip=False)(torch.arange(10))
    assert (kept.tolist(), skipped) == (list(range(10)), ())
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), np.stack(expected))


def test_read_rgb__grey_jpeg_does_not_need_pil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photograph(16, 16).convert("L").save(tmp_path / "a.jpg")
    expected = by_pil(tmp_path / "a.jpg")
    forbid_pil(monkeypatch)
    assert np.array_equal(read_rgb(tmp_path / "a.jpg"), expected)


def test_read_rgb__leaves_other_formats_to_pil(tmp_path: Path) -> None:
    photograph(20, 12).quantize(16).convert("P").save(tmp_path / "a.png")
    photograph(20, 12).quantize(16).convert("RGB").save(tmp_path / "a.webp")
    photograph(20, 12).save(tmp_path / "a.JPEG", "PNG")
    for file in tmp_path.iterdir():
        assert np.array_equal(read_rgb(file), by_pil(file))


def test_read_rgb__ignores_the_orientation_tag(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(20, 12).save(tmp_path / "a.jpg", exif=exif)
    assert read_rgb(tmp_path / "a.jpg").shape == (12, 20, 3)
    assert np.array_equal(read_rgb(tmp_path / "a.jpg"), by_pil(tmp_path / "a.jpg"))


def outcome(read: Callable[[Path], np.ndarray], path: Path) -> tuple[type, Any]:
    try:
        return np.ndarray, read(path).tobytes()
    except (OSError, ValueError) as error:
        return type(error), str(error)


@settings(deadline=None, max_examples=40)
@given(
    spoil=st.integers(1, 300).map(lambda n: lambda data: data[:-n])
    | st.binary(min_size=1, max_size=20).map(lambda more: lambda data: data + more)
    | st.binary(min_size=1, max_size=20).map(lambda other: lambda data: data[:-150] + other + data[-150:])
    | st.integers(2, 400).map(lambda n: lambda data: data[:n] + b"\xff\xff" + data[n:])
)
def test_read_rgb__broken_jpeg_is_what_pil_makes_of_it(
    tmp_path_factory: pytest.TempPathFactory, spoil: Callable[[bytes], bytes]
) -> None:
    file = tmp_path_factory.mktemp("jpeg") / "a.jpg"
    photograph(40, 40).save(file)
    file.write_bytes(spoil(file.read_bytes()))
    assert outcome(read_rgb, file) == outcome(by_pil, file)


def test_file_images__truncated_jpeg_is_left_out(tmp_path: Path) -> None:
    paths = [tmp_path / f"{k}.jpg" for k in range(3)]
    for k, path in enumerate(paths):
        photograph(64, 64, seed=k).save(path)
    expected = [by_pil(path) for path in paths]
    paths[1].write_bytes(paths[1].read_bytes()[:-400])
    images, kept, skipped = FileImages(paths, 64, skip=True)(torch.arange(3))
    assert kept.tolist() == [0, 2]
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), np.stack([expected[0], expected[2]]))
    (fault,) = skipped
    assert_names(fault, paths[1], outcome(by_pil, paths[1])[1])
    with raises_naming(ValueError, paths[1]):
        FileImages(paths, 64, skip=False)(torch.arange(3))


@pytest.mark.parametrize("size", [(90, 60), (28, 28)], ids=["larger", "of that size"])
def test_file_images__crop_is_that_of_pils_image(tmp_path: Path, size: tuple[int, int]) -> None:
    photograph(*size).save(tmp_path / "a.jpg")
    (images, _, _) = FileImages([tmp_path / "a.jpg"], 28, skip=False, crop=True)(torch.tensor([0]))
    as_usual = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(28), transforms.PILToTensor()])
    with Image.open(tmp_path / "a.jpg") as image:
        assert torch.equal(images[0], as_usual(image.convert("RGB")))

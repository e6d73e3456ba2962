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

from tta.streams import files
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


@pytest.fixture
def no_pil(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise AssertionError(f"PIL was asked for {path}")

    monkeypatch.setattr(files.Image, "open", refuse)


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0", "4:1:1"]),
    progressive=st.booleans(),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    keep_rgb=st.booleans(),
)
def test_jpeg_has_the_pixels_of_pil(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, mode: str, keep_rgb: bool, **options: Any
) -> None:
    file = tmp_path_factory.mktemp("jpeg") / "a.JPEG"
    if keep_rgb and mode == "RGB":
        options = {"quality": options["quality"], "keep_rgb": True}
    photograph(width, height).convert(mode).save(file, "JPEG", **options)
    assert np.array_equal(read_rgb(file), by_pil(file))


def test_photographs_have_the_pixels_of_pil_and_do_not_need_it(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sorted((shared / "data" / "imagenet-224-1000").glob("*/*.JPEG"))[::50]
    expected = [by_pil(path) for path in paths]
    assert len(expected) == 20
    no_pil.__wrapped__(monkeypatch)  # type: ignore[attr-defined]
    (images, kept, skipped) = FileImages(paths, 224, skip=False)(torch.arange(20))
    assert (kept.tolist(), skipped) == (list(range(20)), ())
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), np.stack(expected))


def test_grey_jpeg_does_not_need_pil(tmp_path: Path, no_pil: None) -> None:
    photograph(16, 16).convert("L").save(tmp_path / "a.jpg")
    assert read_rgb(tmp_path / "a.jpg").shape == (16, 16, 3)


@pytest.mark.parametrize("ending", ["png", "webp", "bmp"])
def test_other_formats_are_pils(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"a.{ending}"
    photograph(20, 12).quantize(16).convert("RGB" if ending == "webp" else "P").save(file)
    assert np.array_equal(read_rgb(file), by_pil(file))


def test_png_under_the_name_of_a_jpeg(tmp_path: Path) -> None:
    photograph(20, 12).save(tmp_path / "a.JPEG", "PNG")
    assert np.array_equal(read_rgb(tmp_path / "a.JPEG"), by_pil(tmp_path / "a.JPEG"))


def test_orientation_tag_counts_for_nothing(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(20, 12).save(tmp_path / "a.jpg", exif=exif)
    assert read_rgb(tmp_path / "a.jpg").shape == (12, 20, 3)
    assert np.array_equal(read_rgb(tmp_path / "a.jpg"), by_pil(tmp_path / "a.jpg"))


def outcome(read: Callable[[Path], np.ndarray], path: Path) -> tuple[type, Any]:
    try:
        pixels = read(path)
        return np.ndarray, pixels.tolist()
    except (OSError, ValueError) as error:
        return type(error), str(error)


@settings(deadline=None, max_examples=100)
@given(
    spoil=st.integers(1, 300).map(lambda n: lambda data: data[:-n])
    | st.binary(min_size=1, max_size=20).map(lambda more: lambda data: data + more)
    | st.binary(min_size=1, max_size=20).map(lambda other: lambda data: data[:-150] + other + data[-150:])
    | st.integers(2, 400).map(lambda n: lambda data: data[:n] + b"\xff\xff" + data[n:])
)
def test_of_a_broken_jpeg_comes_what_pil_makes_of_it(
    tmp_path_factory: pytest.TempPathFactory, spoil: Callable[[bytes], bytes]
) -> None:
    file = tmp_path_factory.mktemp("jpeg") / "a.jpg"
    photograph(40, 40).save(file)
    file.write_bytes(spoil(file.read_bytes()))
    assert outcome(read_rgb, file) == outcome(by_pil, file)


def test_truncated_jpeg_says_what_pil_says_and_leaves_the_others_alone(tmp_path: Path) -> None:
    paths = [tmp_path / f"{k}.jpg" for k in range(3)]
    for k, path in enumerate(paths):
        photograph(64, 64, seed=k).save(path)
    expected = [by_pil(path) for path in paths]
    paths[1].write_bytes(paths[1].read_bytes()[:-400])
    images, kept, skipped = FileImages(paths, 64, skip=True)(torch.arange(3))
    assert kept.tolist() == [0, 2]
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), np.stack([expected[0], expected[2]]))
    (fault,) = skipped
    assert fault.startswith(f"{paths[1]} (image file is truncated (")
    with pytest.raises(ValueError, match=r"1 unreadable image\(s\) in a batch of 3: .*truncated"):
        FileImages(paths, 64, skip=False)(torch.arange(3))


def test_crop_is_that_of_pils_image(tmp_path: Path) -> None:
    photograph(90, 60).save(tmp_path / "a.jpg")
    (images, _, _) = FileImages([tmp_path / "a.jpg"], 28, skip=False, crop=True)(torch.tensor([0]))
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(files.imagenet_crop(image.convert("RGB"), 28))
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), expected)


def test_crop_counts_for_an_image_of_that_size_too(tmp_path: Path) -> None:
    photograph(28, 28).save(tmp_path / "a.jpg")
    (images, _, _) = FileImages([tmp_path / "a.jpg"], 28, skip=False, crop=True)(torch.tensor([0]))
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(files.imagenet_crop(image.convert("RGB"), 28))
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), expected)

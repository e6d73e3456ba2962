"""What ``corrupt`` says to wrong arguments: what was expected, what was given, what to do."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tta.corruptions import CORRUPTIONS, corrupt, weather

IMAGES, INDEX = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.arange(2)


@pytest.fixture
def nothing_cached() -> Iterator[None]:
    weather.frost_photographs.cache_clear()
    yield
    weather.frost_photographs.cache_clear()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "gausian_noise",
            "no corruption 'gausian_noise'; did you mean 'gaussian_noise'. Choose one of: gaussian_noise, s",
        ),
        ("jpeg", "no corruption 'jpeg'; .*jpeg_compression"),
        ("Fog", "no corruption 'Fog'; did you mean 'fog'"),
        ("xyzzy", "no corruption 'xyzzy'; Choose one of: gaussian_noise, .*, saturate$"),
        ("", "no corruption ''; Choose one of"),
        (3, "no corruption 3; Choose one of"),
        (None, "no corruption None; Choose one of"),
    ],
)
def test_unknown_name(name: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corrupt(IMAGES, name, 1, index=INDEX)


def test_an_unknown_name_lists_all_that_there_are() -> None:
    with pytest.raises(ValueError, match=", ".join(CORRUPTIONS)):
        corrupt(IMAGES, "xyzzy", 1, index=INDEX)


@pytest.mark.parametrize("severity", [0, 6, -1, True, 2.0, "5", None], ids=repr)
def test_wrong_severity(severity: Any) -> None:
    with pytest.raises(ValueError, match=f"severity must be a whole number from 1 to 5, got {severity!r}$"):
        corrupt(IMAGES, "fog", severity, index=INDEX)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool])
def test_images_that_are_not_uint8(dtype: torch.dtype) -> None:
    message = rf"images must be uint8, 0 to 255, got {dtype}: .*\(images \* 255\)\.round\(\)\.to\(torch\.uint8\)"
    with pytest.raises(ValueError, match=message):
        corrupt(IMAGES.to(dtype), "fog", 1, index=INDEX)


@pytest.mark.parametrize("shape", [(2, 32, 32, 3), (3, 32, 32), (2, 1, 32, 32), (2, 4, 32, 32), (2, 3, 32, 16), (2, 3)])
def test_images_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    got = str(shape).replace("(", r"\(").replace(")", r"\)")
    message = rf"square RGB of shape \(N, 3, S, S\), got {got}: .*images\.permute\(0, 3, 1, 2\)"
    with pytest.raises(ValueError, match=message):
        corrupt(torch.zeros(shape, dtype=torch.uint8), "fog", 1, index=INDEX)


@pytest.mark.parametrize("size", [31, 64, 256])
def test_images_of_a_size_without_constants(size: int) -> None:
    message = (
        f"constants for images of 32 or 224 pixels, got {size} x {size}: resize the images, or say with scale=32 or "
        "scale=224 which constants"
    )
    with pytest.raises(ValueError, match=message):
        corrupt(torch.zeros(2, 3, size, size, dtype=torch.uint8), "fog", 1, index=INDEX)


@pytest.mark.parametrize("size", [1, 15])
def test_images_too_small_for_any_scale(size: int) -> None:
    with pytest.raises(ValueError, match=f"at least 16 x 16 pixels, got {size} x {size}: enlarge them"):
        corrupt(torch.zeros(2, 3, size, size, dtype=torch.uint8), "fog", 1, index=INDEX, scale=32)


@pytest.mark.parametrize(
    ("index", "got"),
    [
        (torch.arange(2, dtype=torch.int32), r"torch\.int32 of shape \(2,\)"),
        (torch.zeros(2), r"torch\.float32 of shape \(2,\)"),
        (torch.arange(3), r"torch\.int64 of shape \(3,\)"),
        (torch.arange(1), r"torch\.int64 of shape \(1,\)"),
        (torch.zeros(2, 1, dtype=torch.int64), r"torch\.int64 of shape \(2, 1\)"),
        (torch.tensor(0), r"torch\.int64 of shape \(\)"),
    ],
)
def test_wrong_index(index: Tensor, got: str) -> None:
    message = rf"index must be int64 of shape \(2,\), one for each image, got {got}: give each image's place"
    with pytest.raises(ValueError, match=message):
        corrupt(IMAGES, "fog", 1, index=index)


@pytest.mark.parametrize("seed", [0.5, "0", None], ids=repr)
def test_wrong_seed(seed: Any) -> None:
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        corrupt(IMAGES, "fog", 1, index=INDEX, seed=seed)


def test_a_seed_may_be_numpys() -> None:
    ours = corrupt(IMAGES, "gaussian_noise", 1, index=INDEX, seed=np.int64(3))  # type: ignore[arg-type]
    assert torch.equal(ours, corrupt(IMAGES, "gaussian_noise", 1, index=INDEX, seed=3))


@pytest.mark.usefixtures("nothing_cached")
def test_frost_without_the_package_of_the_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "imagecorruptions" else find_spec(name, *rest)
    )
    message = "'frost' needs the photographs of .* imagecorruptions, .* not installed: pip install imagecorruptions"
    with pytest.raises(FileNotFoundError, match=message):
        corrupt(IMAGES, "frost", 1, index=INDEX)
    corrupt(IMAGES, "fog", 1, index=INDEX)


@pytest.mark.usefixtures("nothing_cached")
def test_frost_with_a_photograph_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = weather.photograph_folder()
    for name in weather.PHOTOGRAPHS:
        if name != "frost4.jpg":
            (tmp_path / name).symlink_to(there / name)
    monkeypatch.setattr(weather, "photograph_folder", lambda: tmp_path)
    message = r"'frost' needs the photograph .*frost4\.jpg, which is missing: reinstall .*--force-reinstall imagecorrup"
    with pytest.raises(FileNotFoundError, match=message):
        corrupt(IMAGES, "frost", 1, index=INDEX)
    (tmp_path / "frost4.jpg").symlink_to(there / "frost4.jpg")
    corrupt(IMAGES, "frost", 1, index=INDEX)  # a failure is not remembered

"""What ``corrupt`` refuses, and what its errors name."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.errors import raises_naming
from tta.corruptions import CORRUPTIONS, corrupt, weather
from tta.corruptions.rng import make_key

IMAGES, INDEX = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.arange(2)


def images_of(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


@pytest.fixture
def nothing_cached() -> Iterator[None]:
    weather.frost_photographs.cache_clear()
    yield
    weather.frost_photographs.cache_clear()


@pytest.mark.parametrize(
    ("name", "suggestions"), [("gausian_noise", ["'gaussian_noise'"]), ("Fog", ["'fog'"]), ("xyzzy", []), (None, [])]
)
def test_name__unknown_is_refused(name: Any, suggestions: list[str]) -> None:
    """The error lists all that there are, and quotes one that looks like it."""
    with raises_naming(ValueError, repr(name), ", ".join(CORRUPTIONS), *suggestions):
        corrupt(IMAGES, name, 1, index=INDEX)


def test_severity__outside_1_to_5_is_refused() -> None:
    for severity in (0, 6, True, 2.0, "5", None):
        with raises_naming(ValueError, "severity", 1, 5, repr(severity)):
            corrupt(IMAGES, "fog", severity, index=INDEX)  # type: ignore[arg-type]


def test_images__other_dtypes_are_refused() -> None:
    for dtype in (torch.float32, torch.bool):
        with raises_naming(ValueError, "images", "uint8", dtype):
            corrupt(IMAGES.to(dtype), "fog", 1, index=INDEX)


@pytest.mark.parametrize("shape", [(2, 32, 32, 3), (3, 32, 32), (2, 1, 32, 32), (2, 3, 32, 16)], ids=str)
def test_images__other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with raises_naming(ValueError, "images", "(N, 3, S, S)", shape):
        corrupt(images_of(*shape), "fog", 1, index=INDEX)


def test_images__a_size_without_constants_is_refused() -> None:
    """Its error names the choices of ``scale``."""
    for size in (31, 256):
        with raises_naming(ValueError, f"{size} x {size}", "scale=32", "scale=224"):
            corrupt(images_of(2, 3, size, size), "fog", 1, index=INDEX)


def test_images__below_16_pixels_are_refused() -> None:
    with raises_naming(ValueError, "images", "16 x 16", "15 x 15"):
        corrupt(images_of(2, 3, 15, 15), "fog", 1, index=INDEX, scale=32)


def test_scale__other_values_are_refused() -> None:
    for scale in (64, "224", True, 32.5):
        with raises_naming(ValueError, "scale", 32, 224, repr(scale)):
            corrupt(IMAGES, "fog", 1, index=INDEX, scale=scale)  # type: ignore[arg-type]


def test_index__other_dtypes_and_shapes_are_refused() -> None:
    for index in (torch.arange(2, dtype=torch.int32), torch.arange(3), torch.zeros(2, 1, dtype=torch.int64)):
        with raises_naming(ValueError, "index", "int64", "(2,)", index.dtype, tuple(index.shape)):
            corrupt(IMAGES, "fog", 1, index=index)


def test_seed__is_a_whole_number() -> None:
    """NumPy's are welcome too."""
    for seed in (1.0, "0", None):
        with raises_naming(TypeError, type(seed).__name__):
            corrupt(IMAGES, "fog", 1, index=INDEX, seed=seed)  # type: ignore[arg-type]
    assert make_key(np.int64(7), "fog", 3) == make_key(7, "fog", 3)  # type: ignore[arg-type]


@pytest.mark.usefixtures("nothing_cached")
def test_frost__needs_the_package_of_the_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "imagecorruptions" else find_spec(name, *rest)
    )
    with raises_naming(FileNotFoundError, "'frost'", "imagecorruptions"):
        corrupt(IMAGES, "frost", 1, index=INDEX)
    corrupt(IMAGES, "fog", 1, index=INDEX)


@pytest.mark.usefixtures("nothing_cached")
def test_frost__does_not_import_that_package() -> None:
    """Its import fails with today's libraries."""
    corrupt(IMAGES, "frost", 1, index=INDEX)
    assert "imagecorruptions" not in sys.modules


@pytest.mark.usefixtures("nothing_cached")
def test_frost__names_a_missing_photograph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = weather.photograph_folder()
    for name in weather.PHOTOGRAPHS:
        if name != "frost4.jpg":
            (tmp_path / name).symlink_to(there / name)
    monkeypatch.setattr(weather, "photograph_folder", lambda: tmp_path)
    with raises_naming(FileNotFoundError, "'frost'", tmp_path / "frost4.jpg", "imagecorruptions"):
        corrupt(IMAGES, "frost", 1, index=INDEX)
    (tmp_path / "frost4.jpg").symlink_to(there / "frost4.jpg")
    corrupt(IMAGES, "frost", 1, index=INDEX)  # a failure is not remembered


def test_frost__refuses_images_beyond_its_photographs() -> None:
    with raises_naming(ValueError, "frost", "300 x 300"):
        corrupt(images_of(1, 3, 300, 300), "frost", 1, index=torch.arange(1), scale=32)

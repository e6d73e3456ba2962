"""The 224-pixel scale against the recipe image by image in NumPy, SciPy, scikit-image, OpenCV and Pillow.

Both are given the same random numbers, so that what is random is compared pixel by pixel too.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor

from tta.corruptions import CORRUPTIONS, SCALES, corrupt
from tta.corruptions.rng import Draw, make_key

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SEED, PLACES = 3, (7, 401)


class SameDraws:
    """The random numbers that ``corrupt`` gives an image, as a NumPy generator gives them."""

    def __init__(self, name: str, severity: int, index: int) -> None:
        self.draw = Draw(make_key(SEED, name, severity), torch.tensor([index]))

    def normal(self, mean: float, deviation: float, shape: tuple[int, ...]) -> np.ndarray:
        return mean + deviation * self._shaped(self.draw.normal, shape)

    def uniform(self, low: float, high: float, shape: tuple[int, ...] = ()) -> np.ndarray:
        return low + (high - low) * self._shaped(self.draw.uniform, shape)

    def poisson(self, mean: np.ndarray) -> np.ndarray:
        return stats.poisson.ppf(self._shaped(self.draw.uniform, mean.shape), mean)

    def integers(self, low: int, high: Any, shape: Any = ()) -> np.ndarray:
        shape = (shape,) if isinstance(shape, int) else shape
        return self.draw.integers(low, torch.as_tensor(high), *shape)[0].numpy()

    @staticmethod
    def _shaped(draws: Any, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 3 and shape[-1] == 3:  # of an image: ours has its channels first
            return draws(3, *shape[:2])[0].permute(1, 2, 0).numpy()
        return draws(*shape)[0].numpy()


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    sys.path.insert(0, str(SCRIPTS))
    try:
        import plain_corruptions
    finally:
        sys.path.remove(str(SCRIPTS))
    return plain_corruptions


@pytest.fixture(scope="module")
def images(shared: Path) -> Tensor:
    """Two photographs, uint8 (2, 3, 224, 224)."""
    folders = sorted((shared / "data" / "imagenet-224-1000").iterdir())
    files = [next(folders[place].iterdir()) for place in PLACES]
    return torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1) for file in files])


def both(images: Tensor, name: str, severity: int, plain: ModuleType) -> tuple[np.ndarray, np.ndarray]:
    ours = corrupt(images, name, severity, index=torch.tensor(PLACES), seed=SEED).permute(0, 2, 3, 1).numpy()
    constants = SCALES[224][name][severity - 1]
    theirs = [
        plain.plain(image.permute(1, 2, 0).numpy().copy(), name, constants, SameDraws(name, severity, index))
        for image, index in zip(images, PLACES, strict=True)
    ]
    return ours.astype(int), np.stack(theirs).astype(int)


def exact_warp(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Map affinely, at real-valued places."""
    a, b, c = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2].T
    rows, columns = np.mgrid[: len(x), : len(x)]
    x_of, y_of = (a[k] * columns + b[k] * rows + c[k] for k in (0, 1))
    return np.stack(
        [ndimage.map_coordinates(x[..., k], [y_of, x_of], order=1, mode="mirror") for k in range(3)], axis=-1
    )


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_imagenet__pixels_are_the_plain_recipes(
    images: Tensor, name: str, plain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain, "warp", exact_warp)
    for severity in (1, 3, 5):
        ours, theirs = both(images, name, severity, plain)
        difference = np.abs(ours - theirs)
        assert difference.max() <= 1, f"severity {severity}"
        assert (difference == 0).mean() > 0.999, f"severity {severity}"


def test_imagenet__opencvs_rounded_places_hardly_show(images: Tensor, plain: ModuleType) -> None:
    ours, theirs = both(images, "elastic_transform", 1, plain)
    assert np.abs(ours - theirs).mean() < 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_imagenet__the_gpu_gives_the_cpus_pixels(images: Tensor, name: str) -> None:
    index = torch.tensor(PLACES)
    for severity in (1, 3, 5):
        expected = corrupt(images, name, severity, index=index).int()
        found = corrupt(images.cuda(), name, severity, index=index).cpu().int()
        assert ((found - expected).abs() <= 1).double().mean() > 0.9999, f"severity {severity}"
        assert (found == expected).double().mean() > 0.99, f"severity {severity}"


def noise(size: int) -> Tensor:
    return torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_scale__any_size_is_corrupted_when_asked(name: str) -> None:
    """The smallest size, and one that is neither even nor a power of two."""
    for size, scale, severity in itertools.product((16, 51), (32, 224), (1, 5)):
        some = noise(size)
        out = corrupt(some, name, severity, index=torch.arange(2), scale=scale)
        assert (out.dtype, out.shape) == (torch.uint8, some.shape)
        assert not torch.equal(out, some)


def test_scale__is_the_images_size_unless_given() -> None:
    some, index = noise(32), torch.arange(2)
    own = corrupt(some, "contrast", 3, index=index)
    assert torch.equal(corrupt(some, "contrast", 3, index=index, scale=32), own)
    assert not torch.equal(corrupt(some, "contrast", 3, index=index, scale=224), own)

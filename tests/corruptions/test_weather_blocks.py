"""The parts of the weather against plain loops and OpenCV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from tta.corruptions import blur, filters, weather
from tta.corruptions.constants import CIFAR, Constants
from tta.corruptions.rng import Draw


class Recorded(Draw):
    """Streams that keep the uniform numbers they gave."""

    def __init__(self, n: int) -> None:
        super().__init__((1, 2), torch.arange(n))
        self.given: list[Tensor] = []

    def uniform(self, *shape: int) -> Tensor:
        self.given.append(super().uniform(*shape))
        return self.given[-1]


def diamond_square(size: int, decay: float, noises: list[np.ndarray]) -> np.ndarray:
    """One heightmap, place by place; three noises for each scale: of centres, of horizontal and of vertical edges."""
    heights = np.zeros((size, size))
    step, wibble = size, 100.0
    queue = iter(noises)
    while step >= 2:
        half = step // 2
        for rows, columns in ((half, half), (0, half), (half, 0)):
            noise = next(queue)
            # Of a centre the corners are around it; of an edge the corners and centres are beside, above and below.
            around = [(-half, -half), (-half, half), (half, -half), (half, half)]
            if (rows, columns) != (half, half):
                around = [(-half, 0), (half, 0), (0, -half), (0, half)]
            for i in range(size // step):
                for j in range(size // step):
                    row, column = i * step + rows, j * step + columns
                    mean = sum(heights[(row + y) % size, (column + x) % size] for y, x in around) / 4
                    heights[row, column] = mean + wibble * (2 * noise[i, j] - 1) * wibble
        step, wibble = half, wibble / decay
    heights -= heights.min()
    return heights / heights.max()


def test_plasma__is_the_diamond_square_algorithm() -> None:
    for size, decay in ((2, 3), (8, 1.75), (32, 2.5)):
        draw = Recorded(3)
        ours = weather.plasma(size, decay, draw)
        for k, mist in enumerate(ours.numpy()):
            noises = [given[k].numpy() for given in draw.given]
            np.testing.assert_allclose(mist, diamond_square(size, decay, noises), atol=1e-12, err_msg=f"size {size}")


def test_plasma__goes_from_0_to_1_and_wraps_around() -> None:
    for decay in (1.75, 3):
        mist = weather.plasma(32, decay, Draw((1, 2), torch.arange(300)))
        assert mist.amin((1, 2)).tolist() == [0] * 300
        assert mist.amax((1, 2)).tolist() == [1] * 300
        for dim in (1, 2):
            inside = mist.diff(dim=dim).square().mean()
            across = (mist.select(dim, 0) - mist.select(dim, -1)).square().mean()
            assert 0.8 < across / inside < 1.25


def test_to_levels__is_a_conversion_to_uint8() -> None:
    x = torch.linspace(-0.2, 1.2, 5000, dtype=torch.float64)
    expected = (np.clip(x.numpy(), 0, 1) * 255).astype(np.uint8)
    assert np.array_equal((weather.to_levels(x) * 255).round().numpy(), expected)


def test_snow__whitens_by_opencvs_grey() -> None:
    images = np.random.default_rng(0).random((2, 32, 32, 3))
    mix = 0.8
    ours = weather.snow(
        torch.tensor(images).permute(0, 3, 1, 2), (0, 1, 1, torch.inf, 8, 3, mix), Draw((1, 2), torch.arange(2))
    ).permute(0, 2, 3, 1)
    for one, image in zip(ours.numpy(), images, strict=True):
        grey = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2GRAY)[..., None].astype(float)
        expected = mix * image + (1 - mix) * np.maximum(image, 1.5 * grey + 0.5)
        np.testing.assert_allclose(one, expected, atol=1e-6)


def as_uint8(x: Tensor) -> Tensor:
    return torch.from_numpy((np.clip(x.numpy(), 0, 1) * 255).astype(np.uint8)) / torch.tensor(255, dtype=torch.float64)


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_flakes__are_cut_smeared_and_laid_twice(severity: int) -> None:
    """The second time upside down; they are truncated before and after they are smeared."""
    mean, deviation, zoom, threshold, radius, sigma, mix = CIFAR["snow"][severity - 1]
    ours = weather.snow(torch.zeros(4, 3, 32, 32, dtype=torch.float64), CIFAR["snow"][severity - 1], Recorded(4))
    draw = Recorded(4)
    flakes = filters.clipped_zoom(mean + deviation * draw.normal(1, 32, 32), zoom)
    flakes[flakes < threshold] = 0
    angle = -135 + 90 * draw.uniform()
    flakes = as_uint8(filters.motion(as_uint8(flakes), int(radius), sigma, angle))
    expected = (1 - mix) * 0.5 + flakes + flakes.flip(2, 3)
    assert (flakes.flatten(1).amax(1) > 0).all()
    torch.testing.assert_close(ours, expected.expand_as(ours), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("corruption", "name", "start"), [(blur.motion_blur, "motion_blur", -45), (weather.snow, "snow", -135)]
)
def test_trails__are_uniform_over_a_right_angle(
    corruption: Callable[[Tensor, Constants, Draw], Tensor],
    name: str,
    start: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Tensor] = []

    def watch(x: Tensor, radius: int, sigma: float, angle: Tensor) -> Tensor:
        seen.append(angle)
        return x

    monkeypatch.setattr(filters, "motion", watch)
    corruption(torch.zeros(3000, 3, 4, 4, dtype=torch.float64), CIFAR[name][0], Draw((1, 2), torch.arange(3000)))
    (angles,) = seen
    assert stats.kstest(angles.numpy(), "uniform", args=(start, 90)).pvalue > 1e-3


def test_frost__photographs_are_opencvs_small_ones() -> None:
    stack, sizes = weather.frost_photographs(5)
    assert len(stack) == 5
    for name, image, (height, width) in zip(weather.PHOTOGRAPHS, stack, sizes.tolist(), strict=True):
        whole = np.asarray(Image.open(weather.photograph_folder() / name).convert("RGB"))
        small = cv2.resize(whole, (0, 0), fx=0.2, fy=0.2)
        # OpenCV rounds the size, and its last row or column may then lie beyond the last whole square of 5 x 5.
        assert abs(small.shape[0] - height) <= 1
        assert abs(small.shape[1] - width) <= 1
        rows, columns = min(small.shape[0], height) - 1, min(small.shape[1], width) - 1
        assert np.array_equal(image[:rows, :columns].numpy(), small[:rows, :columns])
        assert (image[height:] == 0).all()
        assert (image[:, width:] == 0).all()


def test_frost__uses_all_photographs_and_their_corners() -> None:
    _, sizes = weather.frost_photographs(5)
    assert (sizes > 32).all()
    black = torch.zeros(3000, 3, 32, 32, dtype=torch.float64)
    seen: list[Tensor] = []

    class Watched(Draw):
        def integers(self, low: int, high: int | Tensor, *shape: int) -> Tensor:
            seen.append(super().integers(low, high, *shape))
            return seen[-1]

    weather.frost(black, CIFAR["frost"][0], Watched((1, 2), torch.arange(3000)))
    which, corner = seen
    assert which.bincount().min() > 500
    for k, (height, width) in enumerate(sizes.tolist()):
        reached = corner[which == k].amax(0)
        assert corner[which == k].amin(0).tolist() == [0, 0]
        assert height - 34 <= int(reached[0]) < height - 32
        assert width - 38 <= int(reached[1]) < width - 32


def test_frost__photographs_are_read_from_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(weather.PHOTOGRAPHS):
        Image.new("RGB", (200 + 5 * number, 180), (10 * number, 20, 30)).save(tmp_path / name)
    monkeypatch.setattr(weather, "photograph_folder", lambda: tmp_path)
    weather.frost_photographs.cache_clear()
    try:
        stack, sizes = weather.frost_photographs(5)
    finally:
        weather.frost_photographs.cache_clear()
    assert sizes.tolist() == [[36, 40 + number] for number in range(5)]
    assert stack.shape == (5, 36, 44, 3)
    assert stack[1, 0, 0].tolist() == [10, 20, 30]

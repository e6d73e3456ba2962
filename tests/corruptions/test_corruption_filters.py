"""The filters against scikit-image, SciPy and OpenCV, and against plain loops."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.filters import gaussian as skimage_gaussian

from tta.corruptions import filters
from tta.corruptions.blur import disk, exchange
from tta.corruptions.constants import CIFAR, IMAGENET

BORDERS: list[tuple[filters.Border, str]] = [("nearest", "edge"), ("symmetric", "symmetric"), ("mirror", "reflect")]
SCIPYS: list[tuple[filters.Border, str]] = [("nearest", "nearest"), ("symmetric", "reflect"), ("mirror", "mirror")]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


@settings(deadline=None)
@given(which=st.sampled_from(BORDERS), size=st.integers(2, 9), radius=st.integers(0, 30))
def test_pad__is_numpys(which: tuple[filters.Border, Any], size: int, radius: int) -> None:
    border, numpys = which
    row = np.arange(size)
    expected = np.pad(row, radius, mode=numpys)
    assert filters.pad(torch.tensor(row), radius, 0, border).tolist() == expected.tolist()


@pytest.mark.parametrize(("border", "scipys", "truncate"), [("nearest", "nearest", 4), ("symmetric", "reflect", 3)])
def test_gaussian__is_scikit_images(border: filters.Border, scipys: str, truncate: float) -> None:
    """Also where it is too narrow to reach a neighbour."""
    x = noise(2, 3, 32, 32)
    for sigma in (0.05, 0.4, 0.7, 1.28, 3):
        ours = filters.gaussian(torch.tensor(x), sigma, border=border, truncate=truncate)
        expected = [
            skimage_gaussian(image, sigma, mode=scipys, truncate=truncate, channel_axis=0, preserve_range=True)
            for image in x
        ]
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-13, err_msg=f"sigma {sigma}")


@pytest.mark.parametrize(("border", "scipys"), SCIPYS)
def test_gaussian__wider_than_the_image_is_scipys(border: filters.Border, scipys: str) -> None:
    """At 2.2 its radius is that of the image plus one."""
    x = noise(2, 3, 8, 8)
    for sigma in (2.0, 2.2, 6.0):
        ours = filters.gaussian(torch.tensor(x), sigma, border=border)
        expected = ndimage.gaussian_filter(x, (0, 0, sigma, sigma), mode=scipys, truncate=4)
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-13, err_msg=f"sigma {sigma}")


@pytest.mark.parametrize(("border", "cv2s"), [("mirror", cv2.BORDER_REFLECT_101), ("nearest", cv2.BORDER_REPLICATE)])
def test_correlate__is_opencvs_filter(border: filters.Border, cv2s: int) -> None:
    x = noise(2, 3, 32, 32)
    for width in (1, 3, 17):
        kernel = noise(width, width, seed=1) - 0.5
        ours = filters.correlate(torch.tensor(x), kernel.tolist(), border)
        expected = [[cv2.filter2D(channel, -1, kernel, borderType=cv2s) for channel in image] for image in x]
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-12, err_msg=f"width {width}")


def test_box__is_opencvs_blur() -> None:
    x = noise(3, 32, 32)
    ours = filters.box(torch.tensor(x))
    np.testing.assert_allclose(ours.numpy(), [cv2.blur(image, (3, 3)) for image in x], atol=1e-13)


def test_disk__is_opencvs_softened_circle() -> None:
    """To single precision; and whether its sum is above or below 1 decides the level of what is plain."""
    for radius, softness in (*CIFAR["defocus_blur"], *IMAGENET["defocus_blur"]):
        reach, width = (8, 3) if radius <= 8 else (int(radius), 5)
        line = np.arange(-reach, reach + 1)
        circle = (np.add.outer(line**2, line**2) <= radius**2).astype(np.float32)
        expected = cv2.GaussianBlur(circle / circle.sum(), ksize=(width, width), sigmaX=softness)
        ours = disk(radius, softness).numpy()
        np.testing.assert_allclose(ours, expected, rtol=3e-7, atol=0, err_msg=f"radius {radius}")
        assert (ours.sum(dtype=np.float64) < 1) == (expected.sum(dtype=np.float64) < 1), f"radius {radius}"


def several_kernels() -> dict[str, np.ndarray]:
    few = np.random.default_rng(0).integers(-2, 3, (5, 5)) / 7
    same = np.full((15, 15), 1 / 225)  # more taps than are added at once
    return {"few": few, "same": same, "one": np.full((1, 1), 0.3), "disk": disk(10, 0.5).double().numpy()}


@pytest.mark.parametrize("kernel", several_kernels().values(), ids=several_kernels().keys())
def test_correlate_levels__is_opencvs_filter(kernel: np.ndarray) -> None:
    """In one piece, and at 200 pixels in several."""
    for size in (32, 200):
        levels = np.random.default_rng(1).integers(0, 256, (2, 3, size, size))
        levels[0] = 255
        ours = filters.correlate_levels(torch.tensor(levels, dtype=torch.int16), torch.tensor(kernel))
        expected = [[cv2.filter2D(channel.astype(float), -1, kernel) for channel in image] for image in levels]
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-10, err_msg=f"size {size}")


def scipys_clipped_zoom(x: np.ndarray, factor: float) -> np.ndarray:
    size = len(x)
    crop = math.ceil(size / factor)
    first = (size - crop) // 2
    zoomed = ndimage.zoom(x[first : first + crop, first : first + crop], factor, order=1)
    first = (len(zoomed) - size) // 2
    return zoomed[first : first + size, first : first + size]


def test_clipped_zoom__is_scipys() -> None:
    x = noise(32, 32)
    for factor in (*np.arange(1, 1.26, 0.01), 1.75, 2, 2.25, 3.3):
        ours = filters.clipped_zoom(torch.tensor(x)[None, None], float(factor))[0, 0]
        np.testing.assert_allclose(ours.numpy(), scipys_clipped_zoom(x, factor), atol=1e-12, err_msg=f"by {factor}")


def smear(image: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """ImageMagick's motion blur of one channel, pixel by pixel."""
    size = len(image)
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * radius + 1)]
    out = np.zeros_like(image)
    for row in range(size):
        for column in range(size):
            for i, weight in enumerate(weights):
                y = row + math.ceil(i * math.sin(math.radians(angle)) - 0.5)
                x = column + math.ceil(i * math.cos(math.radians(angle)) - 0.5)
                y, x = min(max(y, 0), size - 1), min(max(x, 0), size - 1)
                out[row, column] += weight / sum(weights) * image[y, x]
    return out


def test_motion__is_a_loop_over_pixels_and_taps() -> None:
    x, angles = noise(5, 2, 16, 16), [-45.0, -7.3, 0.0, 31.4, -133.0]
    ours = filters.motion(torch.tensor(x), 6, 2.5, torch.tensor(angles, dtype=torch.float64))
    expected = [[smear(c, 6, 2.5, angle) for c in image] for image, angle in zip(x, angles, strict=True)]
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-13)


@pytest.mark.parametrize(("border", "scipys"), SCIPYS)
def test_bilinear__is_scipys_map_coordinates(border: filters.Border, scipys: str) -> None:
    x = noise(2, 3, 20, 20)
    rows, columns = 70 * noise(2, 20, 20, seed=1) - 25, 70 * noise(2, 20, 20, seed=2) - 25
    ours = filters.bilinear(torch.tensor(x), torch.tensor(rows), torch.tensor(columns), border)
    expected = [
        [ndimage.map_coordinates(channel, at, order=1, mode=scipys) for channel in image]
        for image, at in zip(x, np.stack((rows, columns), axis=1), strict=True)
    ]
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-12)


def exchange_by_views(image: np.ndarray, shift: np.ndarray, delta: int) -> np.ndarray:
    """What the published loop does: both sides of its exchange are views of the image (S, S, channels)."""
    image = image.copy()
    size = len(image)
    for h in range(size - delta, delta, -1):
        for w in range(size - delta, delta, -1):
            dy, dx = shift[:, h, w]
            image[h, w], image[h + dy, w + dx] = image[h + dy, w + dx], image[h, w]
    return image


@settings(max_examples=40, deadline=None)
@given(size=st.integers(4, 14), delta=st.integers(1, 4), seed=st.integers(0, 2**32 - 1), constant=st.booleans())
def test_exchange__is_the_published_loop(size: int, delta: int, seed: int, constant: bool) -> None:
    rng = np.random.default_rng(seed)
    shift = rng.integers(-delta, delta, (3, 2, size, size))
    if constant:  # all in one direction: the longest chains of copies
        shift[:] = shift[:, :, :1, :1]
    numbers = np.arange(size * size).reshape(size, size, 1).repeat(3, axis=2)
    expected = [exchange_by_views(numbers, one, delta)[:, :, 0].ravel() for one in shift]
    assert exchange(torch.tensor(shift), delta).tolist() == np.array(expected).tolist()

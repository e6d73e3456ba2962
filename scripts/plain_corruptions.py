"""The recipe of the 19 corruptions, image by image in NumPy, SciPy, scikit-image, OpenCV and Pillow.

It follows the public generators step by step and is as slow as they are: what ``scripts/benchmark.py corruptions``
compares with, and what tests hold ``tta.corruptions`` to. ``plain(image, name, constants, rng)`` corrupts one image;
``rng`` is a ``numpy.random.Generator``, or something that draws as one.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.color import hsv2rgb, rgb2hsv
from skimage.filters import gaussian

from tta.corruptions.weather import PHOTOGRAPHS, photograph_folder

Array = np.ndarray
Constants = tuple[float, ...]


def plain(image: Array, name: str, constants: Constants, rng: Any) -> Array:
    """Corrupt uint8 (S, S, 3) with the constants of a severity, as in ``tta.corruptions.SCALES``."""
    x = RECIPES[name](image, constants, rng)
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)


def gaussian_noise(image: Array, c: Constants, rng: Any) -> Array:
    """Add normal noise."""
    return image / 255 + rng.normal(0, c[0], image.shape)


def shot_noise(image: Array, c: Constants, rng: Any) -> Array:
    """Count photons."""
    return rng.poisson(image / 255 * c[0]) / c[0]


def impulse_noise(image: Array, c: Constants, rng: Any) -> Array:
    """Set values to 0 or 1."""
    x, u = image / 255, rng.uniform(0, 1, image.shape)
    x[u < c[0]] = 0
    x[u < c[0] / 2] = 1
    return x


def speckle_noise(image: Array, c: Constants, rng: Any) -> Array:
    """Add normal noise in proportion to the value."""
    x = image / 255
    return x + x * rng.normal(0, c[0], image.shape)


def gaussian_blur(image: Array, c: Constants, rng: Any) -> Array:
    """Blur with a Gaussian."""
    return gaussian(image / 255, c[0], mode="nearest", channel_axis=-1)


def defocus_blur(image: Array, c: Constants, rng: Any) -> Array:
    """Blur with a disk."""
    radius, alias = c
    reach, width = (np.arange(-8, 9), 3) if radius <= 8 else (np.arange(-radius, radius + 1), 5)
    x, y = np.meshgrid(reach, reach)
    disk = np.array(x**2 + y**2 <= radius**2, dtype=np.float32)
    kernel = cv2.GaussianBlur(disk / disk.sum(), (width, width), sigmaX=alias)
    return np.stack([cv2.filter2D(channel, -1, kernel) for channel in np.moveaxis(image / 255, -1, 0)], axis=-1)


def glass_blur(image: Array, c: Constants, rng: Any) -> Array:
    """Blur, let pixels take the place of others nearby, and blur again."""
    sigma, delta, passes = c[0], int(c[1]), int(c[2])
    size = len(image)
    x = (gaussian(image / 255, sigma, mode="nearest", channel_axis=-1) * 255).astype(np.uint8)
    for _ in range(passes):
        down, right = rng.integers(-delta, delta, (2, size, size))
        for h in range(size - delta, delta, -1):
            for w in range(size - delta, delta, -1):
                # What is published as an exchange: both are views, so both places end with what the second held.
                there = h + down[h, w], w + right[h, w]
                x[h, w], x[there] = x[there], x[h, w]
    return gaussian(x / 255, sigma, mode="nearest", channel_axis=-1)


def motion_blur(image: Array, c: Constants, rng: Any) -> Array:
    """Smear within 45 degrees of the horizontal."""
    return smear(image / 255, int(c[0]), c[1], rng.uniform(-45, 45))


def smear(x: Array, radius: int, sigma: float, angle: float) -> Array:
    """Smear float (S, S, ...) as ImageMagick does, along an angle in degrees."""
    taps = np.arange(2 * radius + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    line, out = np.arange(len(x)), np.zeros_like(x)
    for tap, weight in zip(taps, weights / weights.sum(), strict=True):
        columns = line + int(np.ceil(tap * np.cos(np.radians(angle)) - 0.5))
        rows = line + int(np.ceil(tap * np.sin(np.radians(angle)) - 0.5))
        out += weight * x[np.clip(rows, 0, len(x) - 1)][:, np.clip(columns, 0, len(x) - 1)]
    return out


def clipped_zoom(x: Array, factor: float) -> Array:
    """Enlarge the middle of float (S, S, ...)."""
    size = len(x)
    crop = int(np.ceil(size / factor))
    top = (size - crop) // 2
    zooms = (factor, factor) + (1,) * (x.ndim - 2)
    x = ndimage.zoom(x[top : top + crop, top : top + crop], zooms, order=1)
    trim = (len(x) - size) // 2
    return x[trim : trim + size, trim : trim + size]


def zoom_blur(image: Array, c: Constants, rng: Any) -> Array:
    """Average zooms of growing strength."""
    x = (image / 255).astype(np.float32)
    factors = np.arange(1, *c)
    total = np.zeros_like(x)
    for factor in factors:
        total += clipped_zoom(x, factor)
    return (x + total) / (len(factors) + 1)


def snow(image: Array, c: Constants, rng: Any) -> Array:
    """Whiten the image and add flakes."""
    mean, deviation, zoom, threshold, radius, sigma, mix = c
    x = (image / 255).astype(np.float32)
    layer = clipped_zoom(rng.normal(mean, deviation, image.shape[:2]), zoom)
    layer[layer < threshold] = 0
    layer = (np.clip(layer, 0, 1) * 255).astype(np.uint8)
    smeared = smear(layer.astype(float), int(radius), sigma, rng.uniform(-135, -45))
    layer = smeared.astype(np.uint8) / 255
    grey = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None]
    x = mix * x + (1 - mix) * np.maximum(x, grey * 1.5 + 0.5)
    return x + layer[..., None] + np.rot90(layer, 2)[..., None]


def frost(image: Array, c: Constants, rng: Any) -> Array:
    """Add a crop of a photograph of frost."""
    size = len(image)
    photograph = cv2.imread(str(photograph_folder() / PHOTOGRAPHS[int(rng.integers(0, 5))]))
    assert photograph is not None
    if c[2] != 1:
        photograph = cv2.resize(photograph, (0, 0), fx=1 / c[2], fy=1 / c[2])
    top, left = rng.integers(0, np.array(photograph.shape[:2]) - size, 2)
    return (c[0] * image + c[1] * photograph[top : top + size, left : left + size, ::-1]) / 255


def fog(image: Array, c: Constants, rng: Any) -> Array:
    """Add a heightmap."""
    x, size = image / 255, len(image)
    mist = plasma(1 << (size - 1).bit_length(), c[1], rng)[:size, :size, None]
    return (x + c[0] * mist) * x.max() / (x.max() + c[0])


def plasma(size: int, decay: float, rng: Any) -> Array:
    """Make a heightmap in [0, 1] by the diamond-square algorithm."""
    heights = np.zeros((size, size))
    step, wibble = size, 100.0
    while step >= 2:
        half = step // 2

        def rough(total: Array, wibble: float = wibble) -> Array:
            return total / 4 + wibble * rng.uniform(-wibble, wibble, total.shape)

        corner = heights[::step, ::step]
        beside, below = corner + np.roll(corner, -1, 1), corner + np.roll(corner, -1, 0)
        heights[half::step, half::step] = rough(beside + np.roll(beside, -1, 0))
        centre = heights[half::step, half::step]
        heights[::step, half::step] = rough(centre + np.roll(centre, 1, 0) + beside)
        heights[half::step, ::step] = rough(centre + np.roll(centre, 1, 1) + below)
        step, wibble = half, wibble / decay
    heights -= heights.min()
    return heights / heights.max()


def brightness(image: Array, c: Constants, rng: Any) -> Array:
    """Raise the value of HSV."""
    x = rgb2hsv(image / 255)
    x[..., 2] = np.clip(x[..., 2] + c[0], 0, 1)
    return hsv2rgb(x)


def saturate(image: Array, c: Constants, rng: Any) -> Array:
    """Scale and shift the saturation of HSV."""
    x = rgb2hsv(image / 255)
    x[..., 1] = np.clip(x[..., 1] * c[0] + c[1], 0, 1)
    return hsv2rgb(x)


def contrast(image: Array, c: Constants, rng: Any) -> Array:
    """Shrink the distance to the mean of each channel."""
    x = image / 255
    mean = x.mean((0, 1))
    return (x - mean) * c[0] + mean


def elastic_transform(image: Array, c: Constants, rng: Any) -> Array:
    """Warp affinely, then by a smooth field."""
    alpha, sigma, reach = c
    size = len(image)
    centre, third = size // 2, size // 3
    corners = centre + third * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + rng.uniform(-reach, reach, (3, 2))
    x = warp((image / 255).astype(np.float32), cv2.getAffineTransform(np.float32(corners), np.float32(moved)))
    if alpha == 0:
        return x
    noise = rng.uniform(-1, 1, (2, size, size))
    down, right = (alpha * gaussian(one, sigma, mode="reflect", truncate=3) for one in noise)
    rows, columns = np.mgrid[:size, :size]
    place = np.stack([rows + down, columns + right])
    channels = [ndimage.map_coordinates(channel, place, order=1, mode="reflect") for channel in np.moveaxis(x, -1, 0)]
    return np.stack(channels, axis=-1)


def warp(x: Array, matrix: Array) -> Array:
    """Map affinely; OpenCV may round places to 1/32 of a pixel."""
    return cv2.warpAffine(x, matrix, x.shape[:2], borderMode=cv2.BORDER_REFLECT_101)


def pixelate(image: Array, c: Constants, rng: Any) -> Array:
    """Shrink and enlarge again."""
    size = len(image)
    small = Image.fromarray(image).resize((int(size * c[0]),) * 2, Image.Resampling.BOX)
    return np.asarray(small.resize((size, size), Image.Resampling.BOX)) / 255


def jpeg_compression(image: Array, c: Constants, rng: Any) -> Array:
    """Encode as JPEG and decode."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=int(c[0]))
    return np.asarray(Image.open(buffer)) / 255


def spatter(image: Array, c: Constants, rng: Any) -> Array:
    """Spill water or mud."""
    mean, deviation, sigma, threshold, strength, mud = c
    x = image / 255
    liquid = gaussian(rng.normal(mean, deviation, image.shape[:2]), sigma, mode="nearest")
    liquid[liquid < threshold] = 0
    if mud:
        m = gaussian((liquid > threshold).astype(float), strength, mode="nearest")[..., None]
        m[m < 0.8] = 0
        return x * (1 - m) + np.array([63, 42, 20]) / 255 * m
    liquid = (liquid * 255).astype(np.uint8)
    distance = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    _, distance = cv2.threshold(distance, 20, 20, cv2.THRESH_TRUNC)
    relief = cv2.equalizeHist(cv2.blur(distance, (3, 3)).astype(np.uint8))
    relief = cv2.filter2D(relief, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
    m = liquid * cv2.blur(relief, (3, 3)).astype(np.float32)
    return x + strength * (m / m.max())[..., None] * np.array([175, 238, 238]) / 255


RECIPES: dict[str, Callable[[Array, Constants, Any], Array]] = {
    recipe.__name__: recipe
    for recipe in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        speckle_noise,
        gaussian_blur,
        defocus_blur,
        glass_blur,
        motion_blur,
        zoom_blur,
        snow,
        frost,
        fog,
        brightness,
        saturate,
        contrast,
        elastic_transform,
        pixelate,
        jpeg_compression,
        spatter,
    )
}

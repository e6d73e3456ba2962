"""The parts of the digital and geometric corruptions against Pillow, scikit-image, SciPy and OpenCV."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage.color import hsv2rgb, rgb2hsv
from skimage.filters import gaussian

from tta.corruptions import filters
from tta.corruptions.constants import CIFAR
from tta.corruptions.digital import (
    affine_grid,
    box_resize,
    contrast,
    elastic_transform,
    hsv_to_rgb,
    jpeg_compression,
    rgb_to_hsv,
)
from tta.corruptions.rng import Draw

SIZE = 32


def levels(*shape: int, seed: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape, dtype=np.uint8)


def fresh_draw(n: int = 5) -> Draw:
    return Draw((1, 2), torch.arange(n))


def colours() -> np.ndarray:
    """Levels (1, 32, 32, 3) with many ties between channels, then greys, black and white."""
    few = levels(1, SIZE, SIZE, 3, high=4) * 85
    few[0, 0] = np.arange(SIZE)[:, None] * 8
    return few


@pytest.mark.parametrize("rgb", [colours(), levels(4, SIZE, SIZE, 3)], ids=["few levels", "many levels"])
def test_hsv__is_scikit_images(rgb: np.ndarray) -> None:
    x = torch.tensor(rgb).permute(0, 3, 1, 2) / torch.tensor(255, dtype=torch.float64)
    expected = rgb2hsv(rgb / 255)
    ours = torch.stack(rgb_to_hsv(x), dim=-1)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-14)
    np.testing.assert_allclose(hsv_to_rgb(*ours.unbind(-1)).permute(0, 2, 3, 1).numpy(), rgb / 255, atol=1e-14)


def test_rgb__is_scikit_images_of_any_hsv() -> None:
    hsv = np.random.default_rng(0).random((4, SIZE, SIZE, 3))
    hsv[0, :, :, 0] = np.linspace(0, 1, SIZE)  # 0 and 1 are the same red
    hsv[1, :, :, 1:] = levels(SIZE, SIZE, 2, high=2)
    ours = hsv_to_rgb(*torch.tensor(hsv).unbind(-1)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(ours.numpy(), hsv2rgb(hsv), atol=1e-13)


@pytest.mark.parametrize("size", [32, 224])
def test_box_resize__is_pillows_there_and_back(size: int) -> None:
    for scale in (0.95, 0.85, 0.65, 0.5, 0.4, 0.25):
        small = int(size * scale)
        for old, new in ((size, small), (small, size)):
            images = levels(2, old, old, 3)
            ours = box_resize(torch.tensor(images).permute(0, 3, 1, 2).double(), new).permute(0, 2, 3, 1)
            for one, image in zip(ours, images, strict=True):
                expected = np.asarray(Image.fromarray(image).resize((new, new), Image.Resampling.BOX))
                np.testing.assert_array_equal(one.numpy(), expected, err_msg=f"{old} to {new}")


def test_jpeg__is_pillows() -> None:
    """To the level: decoders round whole numbers alike."""
    images = np.stack([cv2.blur(image, (5, 5)) for image in levels(3, SIZE, SIZE, 3)])
    x = torch.tensor(images).permute(0, 3, 1, 2).double() / 255
    for quality in (80, 40, 7):
        ours = (jpeg_compression(x, (quality,), fresh_draw(3)) * 255).permute(0, 2, 3, 1).round().numpy()
        for one, image in zip(ours, images, strict=True):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG", quality=quality)
            np.testing.assert_array_equal(one, np.asarray(Image.open(buffer)), err_msg=f"quality {quality}")


def test_contrast__shrinks_about_each_channels_mean() -> None:
    x = torch.tensor(levels(3, 3, SIZE, SIZE)).double() / 255
    ours = contrast(x, (0.3,), fresh_draw(3))
    mean = x.numpy().mean((2, 3), keepdims=True)
    np.testing.assert_allclose(ours.numpy(), mean + 0.3 * (x.numpy() - mean), atol=1e-7)


def affine_maps(reach: float, draw: Draw) -> list[np.ndarray]:
    """The maps of the recipe, 2 x 3 each, from three corners about the centre to these moved at random."""
    moves = reach * (2 * draw.uniform(3, 2).numpy() - 1)
    centre, third = SIZE // 2, SIZE // 3
    corners = np.array(
        [[centre + third, centre + third], [centre + third, centre - third], [centre - third, centre - third]]
    )
    return [cv2.getAffineTransform(corners.astype(np.float32), (corners + move).astype(np.float32)) for move in moves]


def test_affine_grid__is_opencvs_map_inverted() -> None:
    y, x = np.mgrid[:SIZE, :SIZE]
    for reach in (0.0, 2.56, 5.0):
        rows, columns = affine_grid(SIZE, reach, fresh_draw())
        for r, c, forward in zip(rows.numpy(), columns.numpy(), affine_maps(reach, fresh_draw()), strict=True):
            back = cv2.invertAffineTransform(forward)
            np.testing.assert_allclose(c, back[0, 0] * x + back[0, 1] * y + back[0, 2], atol=1e-4)
            np.testing.assert_allclose(r, back[1, 0] * x + back[1, 1] * y + back[1, 2], atol=1e-4)


def some_smooth_images(n: int = 5) -> np.ndarray:
    """Images float64 (n, 32, 32, 3) in [0, 1] without edges, on which sampling errors are small."""
    return np.stack(
        [cv2.GaussianBlur(image, (0, 0), 2) for image in np.random.default_rng(0).random((n, SIZE, SIZE, 3))]
    )


def test_affine_warp__is_opencvs() -> None:
    images = some_smooth_images()
    x = torch.tensor(images).permute(0, 3, 1, 2)
    ours = filters.bilinear(x, *affine_grid(SIZE, 2.56, fresh_draw()), border="mirror").permute(0, 2, 3, 1)
    for one, image, forward in zip(ours, images, affine_maps(2.56, fresh_draw()), strict=True):
        expected = cv2.warpAffine(image, forward, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT_101)
        # OpenCV may round places to 1/32 of a pixel.
        steepest = max(np.abs(np.diff(image, axis=axis)).max() for axis in (0, 1))
        np.testing.assert_allclose(one.numpy(), expected, atol=2 * steepest / 32)


@pytest.mark.parametrize("severity", [2, 5])
def test_elastic__displacement_is_the_recipe_in_scipy(severity: int) -> None:
    alpha, sigma, _ = CIFAR["elastic_transform"][severity - 1]
    images = np.random.default_rng(0).random((3, 3, SIZE, SIZE))
    ours = elastic_transform(torch.tensor(images), (alpha, sigma, 0.0), fresh_draw(3))
    draw = fresh_draw(3)
    draw.uniform(3, 2)  # the corners, which stay
    fields = 2 * draw.uniform(2, SIZE, SIZE).numpy() - 1
    y, x = np.mgrid[:SIZE, :SIZE]
    for one, image, field in zip(ours.numpy(), images, fields, strict=True):
        dy, dx = (alpha * gaussian(axis, sigma, mode="reflect", truncate=3) for axis in field)
        expected = [ndimage.map_coordinates(c, (y + dy, x + dx), order=1, mode="reflect") for c in image]
        np.testing.assert_allclose(one, expected, atol=1e-10)


def test_elastic__is_affine_alone_without_displacement() -> None:
    x = torch.tensor(levels(5, 3, SIZE, SIZE)).double() / 255
    ours = elastic_transform(x, CIFAR["elastic_transform"][0], fresh_draw())
    reach = CIFAR["elastic_transform"][0][2]
    torch.testing.assert_close(ours, filters.bilinear(x, *affine_grid(SIZE, reach, fresh_draw()), border="mirror"))

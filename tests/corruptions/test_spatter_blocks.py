"""The parts of spatter against OpenCV."""

from __future__ import annotations

import importlib

import cv2
import numpy as np
import pytest
import torch
from skimage.filters import gaussian
from torch import Tensor

from tta.corruptions.constants import CIFAR
from tta.corruptions.rng import Draw
from tta.corruptions.spatter import canny, chamfer_distance, equalize, water_sheen

SIZE = 32
LOW, HIGH = 50, 150


def grainy(n: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, SIZE, SIZE), dtype=np.uint8)


def smooth(n: int = 20) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(image, (0, 0), 1 + 0.1 * k) for k, image in enumerate(grainy(n))])


def stretched(n: int = 20) -> np.ndarray:
    return np.stack([cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX) for image in smooth(n)])


def coarse(n: int = 20) -> np.ndarray:
    """Few levels, hence many equal gradients."""
    return np.random.default_rng(0).integers(0, 3, (n, SIZE, SIZE), dtype=np.uint8) * 60


def drops(severity: int, n: int = 40, seed: int = 0) -> np.ndarray:
    """The liquid of the recipe, uint8 (n, 32, 32)."""
    mean, deviation, sigma, threshold, *_ = CIFAR["spatter"][severity - 1]
    rng = np.random.default_rng(seed)
    liquid = np.stack([gaussian(rng.normal(mean, deviation, (SIZE, SIZE)), sigma, mode="nearest") for _ in range(n)])
    liquid[liquid < threshold] = 0
    return (liquid * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def textures() -> dict[str, np.ndarray]:
    return {
        "grainy": grainy(),
        "smooth": smooth(),
        "stretched": stretched(),
        "coarse": coarse(),
        "drops 1": drops(1),
        "drops 3": drops(3),
        "plain": np.full((2, SIZE, SIZE), 7, np.uint8),
    }


def test_edges__are_opencvs(textures: dict[str, np.ndarray]) -> None:
    for name, levels in textures.items():
        ours = canny(torch.tensor(levels).double(), LOW, HIGH).numpy()
        expected = [cv2.Canny(image, LOW, HIGH) > 0 for image in levels]
        np.testing.assert_array_equal(ours, expected, err_msg=name)


def test_distances__are_opencvs() -> None:
    for share in (0.001, 0.01, 0.1, 0.5, 1.0):
        zero = np.random.default_rng(0).random((20, SIZE, SIZE)) < share
        zero[:, 5, 9] = True  # with no zero at all OpenCV's answer is only large
        ours = chamfer_distance(torch.tensor(zero)).numpy()
        expected = [cv2.distanceTransform(np.uint8(~image) * 255, cv2.DIST_L2, 5) for image in zero]
        # Some versions of OpenCV add multiples of 2^-16, as ours does, others single precision.
        np.testing.assert_allclose(ours, expected, rtol=2**-16, err_msg=f"share {share}")


def test_distances__are_exact_up_to_a_limit() -> None:
    """Beyond it they are no less."""
    zero = torch.from_numpy(np.random.default_rng(0).random((20, SIZE, SIZE)) < 0.003)
    expected = chamfer_distance(zero)
    for limit in (1, 20, 100):
        torch.testing.assert_close(chamfer_distance(zero, limit).clamp(max=limit), expected.clamp(max=limit))


def test_distances__to_nothing_are_beyond_every_cut() -> None:
    assert (chamfer_distance(torch.zeros(1, SIZE, SIZE, dtype=torch.bool)) > 1000).all()


def dark(n: int = 150) -> np.ndarray:
    """Few different levels, hence shares that are half a level."""
    rng = np.random.default_rng(0)
    return np.stack([rng.normal(5, rng.uniform(0.5, 30), (SIZE, SIZE)).clip(0, 255) for _ in range(n)]).astype(np.uint8)


def test_equalized_histograms__are_opencvs(textures: dict[str, np.ndarray]) -> None:
    for name, levels in {**textures, "dark": dark()}.items():
        ours = equalize(torch.tensor(levels).long()).numpy()
        np.testing.assert_array_equal(ours, [cv2.equalizeHist(image) for image in levels], err_msg=name)


def sheen_in_opencv(liquid: np.ndarray) -> np.ndarray:
    distance = cv2.distanceTransform(255 - cv2.Canny(liquid, LOW, HIGH), cv2.DIST_L2, 5)
    _, distance = cv2.threshold(distance, 20, 20, cv2.THRESH_TRUNC)
    relief = cv2.equalizeHist(cv2.blur(distance, (3, 3)).astype(np.uint8))
    relief = cv2.filter2D(relief, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
    light = liquid * cv2.blur(relief, (3, 3)).astype(np.float32)
    return light / light.max()


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_water__reflects_as_in_opencv(severity: int) -> None:
    liquid = drops(severity, n=300)
    liquid = liquid[liquid.any((1, 2))]
    assert len(liquid) > 270
    ours = water_sheen(torch.tensor(liquid).double()).numpy()
    np.testing.assert_allclose(ours, [sheen_in_opencv(image) for image in liquid], atol=1e-6)


def test_water__light_far_from_an_edge_is_opencvs() -> None:
    """Of drops far from others, and within one that is wide."""
    corner = np.zeros((3, SIZE, SIZE), np.uint8)
    corner[0, :3, :3], corner[1, -4:, :2], corner[2, 30:, 30:] = 190, 220, 255
    corner[:, 0, 5], corner[:, 31, 0] = 179, 181
    ours = water_sheen(torch.tensor(corner).double()).numpy()
    np.testing.assert_allclose(ours, [sheen_in_opencv(image) for image in corner], atol=1e-6)
    wide = np.zeros((96, 96), np.uint8)
    wide[:, :60] = 200
    ours = water_sheen(torch.tensor(wide)[None].double()).numpy()
    np.testing.assert_allclose(ours[0], sheen_in_opencv(wide), atol=1e-6)


def test_water__no_drop_reflects_nothing() -> None:
    assert (water_sheen(torch.zeros(2, SIZE, SIZE, dtype=torch.float64)) == 0).all()


@pytest.mark.parametrize("mean", [0.65, 1.9])
def test_liquid__is_cut_and_converted_to_uint8(mean: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond 1 it wraps around."""
    spatter = importlib.import_module("tta.corruptions.spatter")
    seen: list[Tensor] = []

    def watch(levels: Tensor) -> Tensor:
        seen.append(levels)
        return levels

    monkeypatch.setattr(spatter, "water_sheen", watch)
    spatter.spatter(torch.zeros(3, 3, SIZE, SIZE), (mean, 0.3, 1, 0.69, 0.5, 0), Draw((1, 2), torch.arange(3)))
    noise = Draw((1, 2), torch.arange(3)).normal(SIZE, SIZE).numpy()
    liquid = np.stack([gaussian(mean + 0.3 * one, 1, mode="nearest") for one in noise])
    liquid[liquid < 0.69] = 0
    expected = (liquid * 255).astype(np.int64).astype(np.uint8)
    # Rounding may take a value just below a whole level above it, or from the last level to the first.
    assert (seen[0].numpy() == expected).mean() > 0.999
    assert np.isin((seen[0].numpy() - expected) % 256, [0, 1, 255]).all()

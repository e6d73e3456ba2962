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


def smooth(n: int = 40) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(image, (0, 0), 1 + 0.05 * k) for k, image in enumerate(grainy(n))])


def stretched(n: int = 40) -> np.ndarray:
    return np.stack([cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX) for image in smooth(n)])


def coarse(n: int = 40) -> np.ndarray:
    """Few levels, hence many equal gradients."""
    return np.random.default_rng(0).integers(0, 3, (n, SIZE, SIZE), dtype=np.uint8) * 60


def drops(severity: int, n: int = 60, seed: int = 0) -> np.ndarray:
    """The liquid of the recipe, uint8 (n, 32, 32)."""
    mean, deviation, sigma, threshold, *_ = CIFAR["spatter"][severity - 1]
    rng = np.random.default_rng(seed)
    liquid = np.stack([gaussian(rng.normal(mean, deviation, (SIZE, SIZE)), sigma, mode="nearest") for _ in range(n)])
    liquid[liquid < threshold] = 0
    return (liquid * 255).astype(np.uint8)


TEXTURES = {
    "grainy": grainy(),
    "smooth": smooth(),
    "stretched": stretched(),
    "coarse": coarse(),
    "drops 1": drops(1),
    "drops 2": drops(2),
    "drops 3": drops(3),
    "plain": np.full((2, SIZE, SIZE), 7, np.uint8),
}
every_texture = pytest.mark.parametrize("levels", TEXTURES.values(), ids=TEXTURES.keys())


@every_texture
def test_edges_are_opencvs(levels: np.ndarray) -> None:
    ours = canny(torch.tensor(levels).double(), LOW, HIGH).numpy()
    for one, image in zip(ours, levels, strict=True):
        assert np.array_equal(one, cv2.Canny(image, LOW, HIGH) > 0)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 1.0])
def test_distances_are_opencvs(share: float) -> None:
    zero = np.random.default_rng(0).random((40, SIZE, SIZE)) < share
    zero[:, 5, 9] = True  # with no zero at all OpenCV's answer is only large
    ours = chamfer_distance(torch.tensor(zero)).numpy()
    expected = [cv2.distanceTransform(np.uint8(~image) * 255, cv2.DIST_L2, 5) for image in zero]
    # Some versions of OpenCV add multiples of 2^-16, as ours does, others single precision.
    np.testing.assert_allclose(ours, expected, rtol=2**-16)


@pytest.mark.parametrize("limit", [1, 7, 20, 100])
def test_distances_up_to_a_limit_are_exact_and_others_no_less(limit: int) -> None:
    zero = torch.from_numpy(np.random.default_rng(0).random((40, SIZE, SIZE)) < 0.003)
    expected = chamfer_distance(zero)
    assert torch.equal(chamfer_distance(zero, limit).clamp(max=limit), expected.clamp(max=limit))


def test_distance_to_nothing_is_beyond_every_cut() -> None:
    assert (chamfer_distance(torch.zeros(1, SIZE, SIZE, dtype=torch.bool)) > 1000).all()


def dark(n: int = 300) -> np.ndarray:
    """Few different levels, hence shares that are half a level."""
    rng = np.random.default_rng(0)
    return np.stack([rng.normal(5, rng.uniform(0.5, 30), (SIZE, SIZE)).clip(0, 255) for _ in range(n)]).astype(np.uint8)


@pytest.mark.parametrize("levels", [*TEXTURES.values(), dark()], ids=[*TEXTURES, "dark"])
def test_equalized_histograms_are_opencvs(levels: np.ndarray) -> None:
    ours = equalize(torch.tensor(levels).long()).numpy()
    for one, image in zip(ours, levels, strict=True):
        assert np.array_equal(one, cv2.equalizeHist(image))


def sheen_in_opencv(liquid: np.ndarray) -> np.ndarray:
    distance = cv2.distanceTransform(255 - cv2.Canny(liquid, LOW, HIGH), cv2.DIST_L2, 5)
    _, distance = cv2.threshold(distance, 20, 20, cv2.THRESH_TRUNC)
    relief = cv2.equalizeHist(cv2.blur(distance, (3, 3)).astype(np.uint8))
    relief = cv2.filter2D(relief, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
    light = liquid * cv2.blur(relief, (3, 3)).astype(np.float32)
    return light / light.max()


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_water_reflects_as_in_opencv(severity: int) -> None:
    liquid = drops(severity, n=1000)
    liquid = liquid[liquid.any((1, 2))]
    assert len(liquid) > 900
    ours = water_sheen(torch.tensor(liquid).double()).numpy()
    np.testing.assert_allclose(ours, [sheen_in_opencv(image) for image in liquid], atol=1e-6)


def test_light_far_from_an_edge_is_opencvs() -> None:
    corner = np.zeros((3, SIZE, SIZE), np.uint8)
    corner[0, :3, :3], corner[1, -4:, :2], corner[2, 30:, 30:] = 190, 220, 255
    corner[:, 0, 5], corner[:, 31, 0] = 179, 181
    ours = water_sheen(torch.tensor(corner).double()).numpy()
    np.testing.assert_allclose(ours, [sheen_in_opencv(image) for image in corner], atol=1e-6)


@pytest.mark.parametrize("mean", [0.65, 1.0, 1.9])
def test_liquid_is_cut_and_converted_to_uint8_as_it_is(mean: float, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert np.array_equal(seen[0].numpy(), (liquid * 255).astype(np.int64).astype(np.uint8))


def test_no_water_reflects_nothing() -> None:
    assert (water_sheen(torch.zeros(2, SIZE, SIZE, dtype=torch.float64)) == 0).all()

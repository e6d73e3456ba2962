"""What is random has the published distribution: statistics of each image, ours minus published, are 0 on average.

Both sides corrupt the same 200 images, so the differences of the pairs show their own sampling error, and a bias is
accepted only up to ``Z`` standard errors of their mean.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.published_images import Published
from tta.corruptions import corrupt
from tta.corruptions.constants import CIFAR

RANDOM = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "speckle_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "frost",
    "fog",
    "elastic_transform",
    "spatter",
)
N, SEEDS, Z = Published.COUNT, 4, 4.5
SEVERITIES = (1, 3, 5)
# Below these a bias does not matter, however sure it is: 1/100 of a level, 1/1000 of a correlation, 1e-4 of a share.
FLOORS = {"level": 0.01, "correlation": 1e-3, "share": 1e-4}


def lag_correlation(residual: Tensor, down: int, right: int) -> Tensor:
    """Correlate what a corruption changed with itself, some pixels away."""
    height, width = residual.shape[2] - down, residual.shape[3] - right
    product = residual[:, :, :height, :width] * residual[:, :, down:, right:]
    return product.mean((1, 2, 3)) / residual.square().mean((1, 2, 3)).clamp(min=1e-6)


def statistics(images: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """Return statistics of each image, float64 (N,); the first word of a name says their floor."""
    x = images.double()
    residual = x - clean.double()
    centred = residual - residual.mean((2, 3), keepdim=True)
    found = {
        "level: mean": x.mean((1, 2, 3)),
        "level: standard deviation": x.flatten(1).std(1),
        "level: distance to the clean image": residual.square().mean((1, 2, 3)).sqrt(),
        "level: mean step to the right": x.diff(dim=3).abs().mean((1, 2, 3)),
        "level: mean step down": x.diff(dim=2).abs().mean((1, 2, 3)),
        "share: values within one level of the clean image": (residual.abs() <= 1).double().mean((1, 2, 3)),
    }
    for down, right in ((0, 1), (1, 0), (0, 4), (4, 0)):
        found[f"correlation: {down} down, {right} right"] = lag_correlation(centred, down, right)
    return found


def assert_no_bias(differences: Tensor, floor: float, what: str) -> None:
    error = differences.std() / len(differences) ** 0.5
    mean = differences.mean()
    assert mean.abs() <= Z * error + floor, f"{what}: ours is off by {mean:.4f}, with a standard error of {error:.4f}"


@pytest.mark.parametrize("name", RANDOM)
def test_statistics__are_those_of_the_published_images(published: Published, name: str) -> None:
    """Also of the scatter from draw to draw."""
    clean, index = published.clean(), torch.arange(N)
    for severity in SEVERITIES:
        theirs = statistics(published.corrupted(name, severity), clean)
        drawn = [statistics(corrupt(clean, name, severity, index=index, seed=seed), clean) for seed in range(SEEDS)]
        for what, expected in theirs.items():
            ours = torch.stack([one[what] for one in drawn])
            floor = FLOORS[what.split(":")[0]]
            assert_no_bias(ours.mean(0) - expected, floor, f"{what} at severity {severity}")
            # Nor does a draw of ours scatter more or less about the others than the published one does.
            others = (ours.sum(0) - ours) / (SEEDS - 1)
            scatter = (ours - others).square() - (expected - others).square()
            assert_no_bias(scatter.mean(0), 0, f"variance of {what} at severity {severity}")


def roughness(fogged: Tensor, clean: Tensor, amount: float) -> dict[str, Tensor]:
    """Return how much rougher the mist is at a scale than at half of it, as logs, float64 (N,).

    Rough is what the middle of a square has that the mean of its corners has not.
    """
    x = clean.double() / 255
    peak = x.amax((1, 2, 3), keepdim=True)
    mist = (((fogged.double() + 0.5) / 255 * (peak + amount) / peak - x) / amount).mean(1)
    squares = []
    for step in (2, 4, 8, 16):
        corner = mist[:, ::step, ::step]
        beside = corner + corner.roll(-1, 2)
        residual = mist[:, step // 2 :: step, step // 2 :: step] - (beside + beside.roll(-1, 1)) / 4
        squares.append(residual.square().mean((1, 2)).log())
    return {f"{2**k} to {2 ** (k + 1)} pixels": squares[k] - squares[k - 1] for k in (1, 2, 3)}


def test_mist__is_as_rough_as_in_the_published_images(published: Published) -> None:
    clean = published.clean()
    for severity in SEVERITIES:
        amount, _ = CIFAR["fog"][severity - 1]
        theirs = roughness(published.corrupted("fog", severity), clean, amount)
        ours = roughness(corrupt(clean, "fog", severity, index=torch.arange(N)), clean, amount)
        for what, expected in theirs.items():
            assert_no_bias(ours[what] - expected, 0, f"roughness from {what} at severity {severity}")

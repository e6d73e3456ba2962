"""Noise on every value: x is float64 (N, 3, S, S) in [0, 1]; what a function returns may leave that range."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from tta.corruptions.constants import Constants
from tta.corruptions.rng import Draw


def gaussian_noise(x: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Add normal noise."""
    (sigma,) = constants
    return x + draw.normal(*x.shape[1:]) * sigma


def speckle_noise(x: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Add normal noise in proportion to the value."""
    (sigma,) = constants
    return x + x * draw.normal(*x.shape[1:]) * sigma


def impulse_noise(x: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Replace single values (not whole pixels) by 0 or 1, half each."""
    (amount,) = constants
    u = draw.uniform(*x.shape[1:])
    return torch.where(u < amount / 2, 1.0, torch.where(u < amount, 0.0, x))


def shot_noise(x: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Count photons: Poisson with the mean that the value says, by inversion of the distribution function."""
    (photons,) = constants
    level = torch.round(x * 255)
    table = poisson_table(photons).to(x.device)
    u = draw.uniform(*x.shape[1:])
    found = torch.searchsorted(table.flatten(), (u + level).contiguous(), right=True)
    return (found - level.long() * table.shape[1]).double() / photons


@functools.cache
def poisson_table(photons: float) -> Tensor:
    """Return k + P(count <= j) for all levels k = 0 ... 255 and counts j, float64 (256, counts).

    The k makes the flattened table increase, so that one binary search serves all levels.
    """
    mean = torch.arange(256, dtype=torch.float64)[:, None] / 255 * photons
    count = torch.arange(int(photons + 9 * math.sqrt(photons)) + 10, dtype=torch.float64)
    mass = torch.exp(torch.xlogy(count, mean) - mean - torch.lgamma(count + 1))
    # The last entry is 1 exactly: no draw may run over into the next level.
    below = torch.cumsum(mass, dim=1).clamp_(max=1)
    below[:, -1] = 1
    return below + torch.arange(256, dtype=torch.float64)[:, None]

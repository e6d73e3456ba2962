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
    return draw.normal(*x.shape[1:]).mul_(sigma).add_(x)


def speckle_noise(x: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Add normal noise in proportion to the value."""
    (sigma,) = constants
    return draw.normal(*x.shape[1:]).mul_(x).mul_(sigma).add_(x)


def impulse_noise(x: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Replace single values (not whole pixels) by 0 or 1, half each."""
    (amount,) = constants
    u = draw.uniform(*x.shape[1:])
    # Comparisons that give 0 and 1 in floating point: torch.where takes several times as long.
    white = u.clone().lt_(amount / 2)
    return u.ge_(amount).mul_(x).add_(white)


def shot_noise(x: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Count photons: Poisson with the mean that the value says, by inversion of the distribution function."""
    (photons,) = constants
    table, guide, most = _inversion(photons, x.device)
    level = (x * 255).round_().long().flatten()
    u = draw.uniform(*x.shape[1:]).flatten()
    count = guide.index_select(0, level * _CELLS + _cell(u))
    row, u = level * (len(table) // 256), u + level
    for _ in range(most):
        count += table.index_select(0, row + count) <= u
    return count.view_as(x).double().div_(photons)


@functools.cache
def poisson_table(photons: float) -> Tensor:
    """Return k + P(count <= j) for all levels k = 0 ... 255 and counts j, float64 (256, counts)."""
    mean = torch.arange(256, dtype=torch.float64)[:, None] / 255 * photons
    count = torch.arange(int(photons + 9 * math.sqrt(photons)) + 10, dtype=torch.float64)
    mass = torch.exp(torch.xlogy(count, mean) - mean - torch.lgamma(count + 1))
    # The last entry is 1 exactly: no draw may run over into the next level.
    below = torch.cumsum(mass, dim=1).clamp_(max=1)
    below[:, -1] = 1
    return below + torch.arange(256, dtype=torch.float64)[:, None]


# In steps of 1/20, the logits of all draws but the two cells at the ends.
_CELLS, _FINE = 1024, 20


def _cell(u: Tensor) -> Tensor:
    """Return in which of ``_CELLS`` cells numbers in [0, 1] lie, int64, in their order.

    Cells are of the logit: on that scale the counts of every mean lie about evenly, those of the tails included.
    """
    return u.logit().mul_(_FINE).add_(_CELLS // 2).clamp_(0, _CELLS - 1).long()


@functools.cache
def _inversion(photons: float, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Return what is needed to find the count of a draw in a few steps, whatever the mean (a guide table).

    Returns:
        ``poisson_table`` flattened; of each level and cell the least count of draws there, int64 (256 * _CELLS); and by
        how many it can be exceeded.
    """
    table = poisson_table(photons)
    cell = _cell(table - torch.arange(256)[:, None])
    ends = torch.zeros(256, _CELLS, dtype=torch.int64).scatter_add_(1, cell, torch.ones_like(cell))
    least = ends.cumsum(1) - ends
    return table.flatten().to(device), least.flatten().to(device), int(ends[:, 1:-1].max())

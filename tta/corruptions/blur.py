"""Blurs: x is float64 (N, 3, S, S) in [0, 1] if not said; what a function returns may leave that range by rounding."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from tta.corruptions import filters
from tta.corruptions.constants import Constants
from tta.corruptions.rng import Draw


def gaussian_blur(x: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Blur with a Gaussian."""
    (sigma,) = constants
    return filters.gaussian(x, sigma)


def defocus_blur(levels: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Blur uint8 (N, 3, S, S) with the disk of an unfocused lens."""
    radius, softness = constants
    return filters.correlate_levels(levels.short(), disk(radius, softness)).div_(255)


def disk(radius: float, softness: float) -> Tensor:
    """Return the kernel of a lens, float32 (K, K): a disk, blurred with a small Gaussian of sigma ``softness``."""
    reach = max(8, math.ceil(radius))
    line = torch.arange(-reach, reach + 1)
    kernel = (line[:, None] ** 2 + line**2 <= radius**2).float()
    kernel /= kernel.sum()
    half = 1 if radius <= 8 else 2
    weights = torch.exp(-0.5 * (torch.arange(-half, half + 1, dtype=torch.float64) / softness) ** 2)
    weights = (weights / weights.sum()).float().double()
    for dim in (1, 0):
        padded = filters.pad(kernel, half, dim, "mirror")
        kernel = kernel * weights[half].float()
        for i in range(1, half + 1):
            pair = padded.narrow(dim, half - i, 2 * reach + 1) + padded.narrow(dim, half + i, 2 * reach + 1)
            # OpenCV multiplies and adds at once, that is without rounding in between.
            kernel = (kernel + weights[half + i] * pair.double()).float()
    return kernel


def glass_blur(x: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Blur, let pixels take the place of others nearby, and blur again."""
    sigma, delta, passes = constants[0], int(constants[1]), int(constants[2])
    n, _, size, _ = x.shape
    x = (filters.gaussian(x, sigma) * 255).floor()
    for _ in range(passes):
        source = exchange(draw.integers(-delta, delta, 2, size, size), delta)
        x = x.flatten(2).gather(2, source.view(n, 1, -1).expand(-1, 3, -1)).view_as(x)
    return filters.gaussian(x / 255, sigma)


def exchange(shift: Tensor, delta: int) -> Tensor:
    """Return which pixel each pixel holds after one pass of the published "exchange".

    The published loop runs from the bottom right to the top left and exchanges pixel p with pixel q = p + shift, but
    through views of the same array, so q keeps its content and p gets a copy. If q was visited before p, that copy is
    of a copy; chains of those are shortened by half at a time, which gives what the loop gives.

    Args:
        shift: int64 (N, 2, S, S), rows and columns, in {-delta, ..., delta - 1}.
        delta: the border that is not visited: ``delta`` + 1 pixels above and left, ``delta`` - 1 below and right.

    Returns:
        int64 (N, S * S), places in the flattened image.
    """
    size = shift.shape[-1]
    line = torch.arange(size, device=shift.device)
    inside = (line > delta) & (line <= size - delta)
    visited = (inside[:, None] & inside).flatten()
    place = torch.arange(size * size, device=shift.device)
    offset = (shift[:, 0] * size + shift[:, 1]).flatten(1)
    source = torch.where(visited, place + offset, place)
    copied = visited[source] & (source > place)
    for _ in range((size * size).bit_length()):
        # Without a look at the numbers where that would have a GPU wait.
        if copied.device.type == "cpu" and not copied.any():
            break
        further, longer = source.gather(1, source), copied.gather(1, source)
        source, copied = torch.where(copied, further, source), copied & longer
    return source


def motion_blur(x: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Smear within 45 degrees of the horizontal."""
    return motion_blur_at(x, constants, draw.uniform() * 90 - 45)


def motion_blur_at(x: Tensor, constants: Constants, angle: Tensor) -> Tensor:
    """Smear in directions float64 (N,), in degrees."""
    radius, sigma = constants
    return filters.motion(x, int(radius), sigma, angle)


def zoom_blur(x: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Average zooms of growing strength; the image itself counts twice, as it is also the zoom by 1."""
    end, step = constants
    factors = np.arange(1, end, step).tolist()
    return filters.in_parts(functools.partial(_mean_of_zooms, factors), x)


def _mean_of_zooms(factors: list[float], x: Tensor) -> Tensor:
    # The generator adds in single precision.
    total = torch.zeros_like(x, dtype=torch.float32)
    x = x.float().double()
    for factor in factors:
        total += filters.clipped_zoom(x, factor).float()
    return (x.float() + total).div_(len(factors) + 1)

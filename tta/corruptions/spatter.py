"""Drops of water or mud on the lens: OpenCV's edge and distance operators on batches."""

from __future__ import annotations

import torch
from torch import Tensor

from tta.corruptions import filters
from tta.corruptions.constants import Constants
from tta.corruptions.rng import Draw

WATER = (175 / 255, 238 / 255, 238 / 255)
MUD = (63 / 255, 42 / 255, 20 / 255)
LIGHT = [[-2.0, -1.0, 0.0], [-1.0, 1.0, 1.0], [0.0, 1.0, 2.0]]


def spatter(x: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Spill water (severities 1 to 3) or mud over float64 (N, 3, S, S) in [0, 1]."""
    mean, deviation, sigma, threshold, strength, mud = constants
    size = x.shape[-1]
    liquid = filters.gaussian(mean + deviation * draw.normal(size, size), sigma)
    liquid = torch.where(liquid < threshold, 0.0, liquid)
    if mud:
        mask = filters.gaussian((liquid > threshold).double(), strength)
        mask = torch.where(mask < 0.8, 0.0, mask)[:, None]
        return x * (1 - mask) + _colour(MUD, x) * mask
    # Beyond 255 the conversion to uint8 wraps around.
    levels = (liquid * 255).floor() % 256
    sheen = water_sheen(levels)[:, None]
    return x + strength * sheen * _colour(WATER, x)


def _colour(rgb: tuple[float, float, float], x: Tensor) -> Tensor:
    return torch.tensor(rgb, dtype=x.dtype, device=x.device)[:, None, None]


def water_sheen(levels: Tensor) -> Tensor:
    """Return how much light drops reflect, (N, S, S) in [0, 1], from their depth in levels 0 ... 255, float (N, S, S).

    The brightest pixel of an image is 1. Without any drop the published code divides 0 by 0; here that gives 0.
    """
    distance = chamfer_distance(canny(levels, 50, 150)).clamp(max=20)
    relief = equalize(filters.box(distance).float().floor().long())
    relief = filters.correlate(relief.double(), LIGHT).clamp(0, 255)
    light = levels * filters.box(relief).round()
    peak = light.amax(dim=(1, 2), keepdim=True)
    return light / torch.where(peak == 0, 1.0, peak)


def canny(levels: Tensor, low: int, high: int) -> Tensor:
    """Find edges as OpenCV's ``Canny`` does (Sobel 3 x 3, L1 norm).

    Args:
        levels: whole numbers 0 ... 255, float (N, S, S).
        low: gradient above which a pixel continues an edge.
        high: gradient above which a pixel begins one.

    Returns:
        bool (N, S, S).
    """
    gx = filters.correlate(levels, [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], "nearest")
    gy = filters.correlate(levels, [[-1, -2, -1], [0, 0, 0], [1, 2, 1]], "nearest")
    magnitude = gx.abs() + gy.abs()
    thin = _local_maximum(magnitude, gx, gy) & (magnitude > low)
    edge = thin & (magnitude > high)
    while True:
        near = torch.nn.functional.max_pool2d(edge.float(), 3, 1, 1) > 0
        grown = thin & near
        if torch.equal(grown, edge):
            return edge
        edge = grown


def _local_maximum(magnitude: Tensor, gx: Tensor, gy: Tensor) -> Tensor:
    """Keep pixels whose gradient exceeds that of both neighbours along it; of two equals the left or upper stays."""
    size = magnitude.shape[-1]
    padded = torch.nn.functional.pad(magnitude, (1, 1, 1, 1))

    def beside(down: int, right: int) -> Tensor:
        return padded[:, 1 + down : 1 + down + size, 1 + right : 1 + right + size]

    # The tangent of 22.5 degrees in OpenCV's fixed point; that of 67.5 degrees is 2 more.
    slope = 13573 / 32768
    flat = gy.abs() < gx.abs() * slope
    steep = gy.abs() > gx.abs() * (slope + 2)
    across = (magnitude > beside(0, -1)) & (magnitude >= beside(0, 1))
    along = (magnitude > beside(-1, 0)) & (magnitude >= beside(1, 0))
    rising = (magnitude > beside(-1, 1)) & (magnitude > beside(1, -1))
    falling = (magnitude > beside(-1, -1)) & (magnitude > beside(1, 1))
    diagonal = torch.where((gx < 0) ^ (gy < 0), rising, falling)
    return torch.where(flat, across, torch.where(steep, along, diagonal))


def chamfer_distance(zero: Tensor) -> Tensor:
    """Return the distance to the nearest True pixel in bool (N, S, S) by OpenCV's 5 x 5 mask, float64; none: huge.

    Steps cost 1 (straight), 1.4 (diagonal) and 2.1969 (knight's move), in multiples of 2^-16.
    """
    straight, diagonal, knight = (round(cost * 65536) for cost in (1, 1.4, 2.1969))
    n, size, _ = zero.shape
    far = 1 << 40
    ramp = torch.arange(size, device=zero.device) * straight
    distance = torch.where(zero, 0, far)
    for _ in range(2):
        # Two rows above and two columns to each side are there, but far.
        rows = [torch.full((n, size + 4), far, device=zero.device) for _ in range(2)]
        for row in distance.unbind(1):
            above, above2 = rows[-1], rows[-2]
            best = torch.minimum(row, above[:, 2:-2] + straight)
            for line, shift, cost in ((above, 1, diagonal), (above, 2, knight), (above2, 1, knight)):
                for start in (2 - shift, 2 + shift):
                    best = torch.minimum(best, line[:, start : start + size] + cost)
            # Steps from the left neighbour all along the row are one running minimum.
            best = torch.cummin(best - ramp, dim=1).values + ramp
            rows.append(torch.nn.functional.pad(best, (2, 2), value=far))
        # The second pass is the first one from the other corner, and turns the image back.
        distance = torch.stack(rows[2:], dim=1)[:, :, 2:-2].flip(1, 2)
    return distance.double() / 65536


def equalize(levels: Tensor) -> Tensor:
    """Equalise the histogram of int64 (N, S, S) in 0 ... 255, as OpenCV's ``equalizeHist`` does."""
    n = len(levels)
    flat = levels.flatten(1)
    histogram = torch.zeros(n, 256, dtype=torch.int64, device=levels.device)
    histogram.scatter_add_(1, flat, torch.ones_like(flat))
    lowest = flat.amin(1, keepdim=True)
    ground = histogram.gather(1, lowest)
    rest = flat.shape[1] - ground
    # 255 as a tensor: torch takes a number over a tensor as its product with the reciprocal, and so rounds twice.
    scale = torch.full_like(rest, 255, dtype=torch.float32) / rest.clamp(min=1)
    table = (histogram.cumsum(1) - ground).float() * scale
    out = table.round().long().gather(1, flat)
    return torch.where(rest == 0, flat, out).view_as(levels)

"""Drops of water or mud on the lens: OpenCV's edge and distance operators on batches."""

from __future__ import annotations

import functools

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
    levels = (liquid * 255).floor_()
    levels -= (levels / 256).floor_() * 256
    sheen = water_sheen(levels)[:, None]
    return x + strength * sheen * _colour(WATER, x)


def _colour(rgb: tuple[float, float, float], x: Tensor) -> Tensor:
    return torch.tensor(rgb, dtype=x.dtype, device=x.device)[:, None, None]


def water_sheen(levels: Tensor) -> Tensor:
    """Return how much light drops reflect, (N, S, S) in [0, 1], from their depth in levels 0 ... 255, float (N, S, S).

    The brightest pixel of an image is 1. Without any drop the published code divides 0 by 0; here that gives 0.
    """
    distance = chamfer_distance(canny(levels, 50, 150), limit=20).clamp(max=20)
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
    whole = levels.short()
    gx = filters.correlate(whole, [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], "nearest")
    gy = filters.correlate(whole, [[-1, -2, -1], [0, 0, 0], [1, 2, 1]], "nearest")
    magnitude = gx.abs() + gy.abs()
    thin = _local_maximum(magnitude, gx, gy) & (magnitude > low)
    edge = thin & (magnitude > high)
    while True:
        grown = thin & _with_neighbours(edge)
        if torch.equal(grown, edge):
            return edge
        edge = grown


def _with_neighbours(edge: Tensor) -> Tensor:
    """Add the eight pixels around each True one of bool (N, S, S)."""
    wide = edge.clone()
    wide[:, :, 1:] |= edge[:, :, :-1]
    wide[:, :, :-1] |= edge[:, :, 1:]
    tall = wide.clone()
    tall[:, 1:] |= wide[:, :-1]
    tall[:, :-1] |= wide[:, 1:]
    return tall


def _local_maximum(magnitude: Tensor, gx: Tensor, gy: Tensor) -> Tensor:
    """Keep pixels whose gradient exceeds that of both neighbours along it; of two equals the left or upper stays."""
    size = magnitude.shape[-1]
    padded = torch.nn.functional.pad(magnitude, (1, 1, 1, 1))

    def beside(down: int, right: int) -> Tensor:
        return padded[:, 1 + down : 1 + down + size, 1 + right : 1 + right + size]

    # The tangents of 22.5 and 67.5 degrees, which differ by 2, in OpenCV's fixed point.
    run, rise = gx.abs().int(), gy.abs().int() * 32768
    flat = rise < run * 13573
    steep = rise > run * (13573 + 2 * 32768)
    across = (magnitude > beside(0, -1)) & (magnitude >= beside(0, 1))
    along = (magnitude > beside(-1, 0)) & (magnitude >= beside(1, 0))
    rising = (magnitude > beside(-1, 1)) & (magnitude > beside(1, -1))
    falling = (magnitude > beside(-1, -1)) & (magnitude > beside(1, 1))
    opposite = (gx < 0) ^ (gy < 0)
    diagonal = opposite & rising | ~opposite & falling
    return flat & across | ~flat & (steep & along | ~steep & diagonal)


def chamfer_distance(zero: Tensor, limit: int | None = None) -> Tensor:
    """Return the distance to the nearest True pixel in bool (N, S, S) by OpenCV's 5 x 5 mask, float64; none: huge.

    Args:
        zero: bool (N, S, S).
        limit: distances up to this are exact, others at least this; default: all are exact.
    """
    size = zero.shape[-1]
    right = _columns_to_nearest(zero)
    cost = _chamfer_costs(size if limit is None else min(size, limit), 2 * size + 1).to(zero.device)
    best = cost[0].index_select(0, right.flatten().int())
    near = torch.empty_like(right)
    for down in range(1, len(cost)):
        # The nearer of the two rows so many above and below; beyond the border there is nothing.
        near.fill_(2 * size)[:, down:] = right[:, :-down]
        torch.minimum(near[:, :-down], right[:, down:], out=near[:, :-down])
        torch.minimum(best, cost[down].index_select(0, near.flatten().int()), out=best)
    return best.view_as(zero).double() / 65536


def _columns_to_nearest(zero: Tensor) -> Tensor:
    """Return how many columns away the nearest True pixel of the row is, int16 (N, S, S); none: 2S."""
    size = zero.shape[-1]
    line = torch.arange(size, dtype=torch.int16, device=zero.device)
    last = torch.where(zero, line, -2 * size).cummax(-1).values
    following = torch.where(zero, line, 3 * size).flip(-1).cummin(-1).values.flip(-1)
    return torch.minimum(line - last, following - line).clamp_(max=2 * size)


@functools.cache
def _chamfer_costs(rows: int, columns: int) -> Tensor:
    """Return the cost of the cheapest way over so many rows and columns, int32 (rows, columns); the last column: huge.

    Steps cost 1 (straight), 1.4 (diagonal) and 2.1969 (knight's move), in multiples of 2^-16. The cheapest way takes
    steps of two neighbouring directions, and costs the greatest of what each such pair would have it cost.
    """
    straight, diagonal, knight = (round(cost * 65536) for cost in (1, 1.4, 2.1969))
    near, far = knight - 2 * straight, 2 * diagonal - knight
    pairs = ((straight, near), (knight - diagonal, far), (far, knight - diagonal), (near, straight))
    down, right = torch.arange(rows, dtype=torch.int32)[:, None], torch.arange(columns, dtype=torch.int32)
    cost = torch.stack([right * across + down * along for across, along in pairs]).amax(0)
    cost[:, -1] = 1 << 30
    return cost


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

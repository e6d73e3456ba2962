"""Filters on batches of images, as SciPy, scikit-image, OpenCV and ImageMagick compute them.

All work on tensors of shape (..., S, S), float if not said. Sums run tap by tap over whole tensors, never through a
library's convolution or matrix product: those may add in an order that depends on the batch size, and pixels must not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

# So many levels have a sum that int16 holds.
_MOST_LEVELS = 128

# What lies outside a row a b c d: "nearest" a a|abcd|d d, "symmetric" b a|abcd|d c, "mirror" c b|abcd|c b.
Border = Literal["nearest", "symmetric", "mirror"]


def _at_a_time(x: Tensor) -> int:
    """Return of how many values a sum of many terms is best made: on a CPU they stay in its cache."""
    return 1 << 16 if x.device.type == "cpu" else max(1, x.numel())


def in_parts(function: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
    """Apply a function to a handful of planes at a time, so that on a CPU all it makes of them stays in the cache.

    Args:
        function: takes planes (P, S, S) and as many entries of each of the others, and returns (P, S, S).
        x: (..., S, S).
        others: (planes, ...).
    """
    many = max(1, _at_a_time(x) // x.shape[-1] ** 2)
    parts = zip(*(one.split(many) for one in (x.flatten(0, -3), *others)), strict=True)
    return torch.cat([function(*part) for part in parts]).view_as(x)


def fold(position: Tensor, size: int, border: Border) -> Tensor:
    """Map whole positions, float64, of which some lie outside, to {0, ..., size - 1}."""
    if border == "nearest":
        return position.clamp(0, size - 1)
    period = 2 * size if border == "symmetric" else 2 * size - 2
    # In floating point, as the remainder of integers is slow.
    position = position - (position / period).floor_().mul_(period)
    return torch.minimum(position, (2 * size - 1 if border == "symmetric" else period) - position)


def pad(x: Tensor, radius: int, dim: int, border: Border) -> Tensor:
    """Lengthen one dimension by ``radius`` on both sides."""
    size = x.shape[dim]
    # Only the borders are read place by place: that is slow along rows.
    places = torch.arange(-radius, size + radius, dtype=torch.float64, device=x.device)
    outside = fold(places, size, border).long()
    return torch.cat((x.index_select(dim, outside[:radius]), x, x.index_select(dim, outside[radius + size :])), dim)


def gaussian(x: Tensor, sigma: float, *, border: Border = "nearest", truncate: float = 4) -> Tensor:
    """Blur (..., S, S) with a Gaussian of ``sigma`` pixels, cut off at ``truncate`` sigmas, as scikit-image does."""
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return x
    weights = [math.exp(-0.5 * i * i / sigma**2) for i in range(radius + 1)]
    return in_parts(functools.partial(_gaussian_of_planes, weights, border), x)


def _gaussian_of_planes(weights: list[float], border: Border, x: Tensor) -> Tensor:
    """Blur (P, S, S), given the weights of the middle and of one side."""
    radius, size = len(weights) - 1, x.shape[-1]
    total = weights[0] + 2 * sum(weights[1:])
    for dim in (-2, -1):
        if radius > size:
            x = _gaussian_folded(x, weights, total, dim, border)
            continue
        padded = pad(x, radius, dim, border)
        x = x * (weights[0] / total)
        pair = torch.empty_like(x)
        for i in range(radius, 0, -1):
            torch.add(padded.narrow(dim, radius - i, size), padded.narrow(dim, radius + i, size), out=pair)
            x.add_(pair, alpha=weights[i] / total)
    return x


def _gaussian_folded(x: Tensor, weights: list[float], total: float, dim: int, border: Border) -> Tensor:
    """Blur one dimension with a Gaussian wider than the image: taps that the border maps to one place are one tap."""
    size, radius = x.shape[dim], len(weights) - 1
    tap = torch.arange(-radius, radius + 1, device=x.device)
    place = fold((torch.arange(size, device=x.device)[:, None] + tap).double(), size, border).long()
    weight = torch.tensor(weights, dtype=x.dtype).to(x.device)[tap.abs()] / total
    # On the CPU, where a sum is made in order.
    table = torch.zeros(size, size, dtype=x.dtype).scatter_add_(1, place.cpu(), weight.cpu().expand(size, -1))
    out, table = torch.zeros_like(x), table.to(x.device)
    for k in range(size):
        column = table[:, k, None] if dim == -2 else table[:, k]
        out.addcmul_(x.narrow(dim, k, 1), column)
    return out


def correlate(x: Tensor, kernel: Sequence[Sequence[float]], border: Border = "mirror") -> Tensor:
    """Correlate (..., S, S) with a square kernel of odd size, at OpenCV's default border."""
    radius, size = len(kernel) // 2, x.shape[-1]
    padded = pad(pad(x, radius, -2, border), radius, -1, border)
    out = torch.zeros_like(x)
    for row, weights in enumerate(kernel):
        for column, weight in enumerate(weights):
            if weight:
                out.add_(padded[..., row : row + size, column : column + size], alpha=weight)
    return out


def correlate_levels(x: Tensor, kernel: Tensor, border: Border = "mirror") -> Tensor:
    """Correlate levels 0 ... 255 with a kernel of odd size that has few different weights and rows.

    What has one weight is added first, as whole numbers, and before it what is in rows of the kernel that are alike.

    Args:
        x: int16 (N, C, S, S).
        kernel: float (K, K), on the CPU.
        border: what lies outside.

    Returns:
        float64 (N, C, S, S).
    """
    reach = int((torch.nonzero(kernel) - len(kernel) // 2).abs().max())
    middle = slice(len(kernel) // 2 - reach, len(kernel) // 2 + reach + 1)
    rows, row_of = kernel[middle, middle].double().unique(dim=0, return_inverse=True)
    padded = pad(pad(x, reach, -2, border), reach, -1, border)
    width, size = padded.shape[-1], x.shape[-1]
    # Rows lie one after the other, so a tap is a shift of all of memory; what it brings to the borders is left out.
    line, out = padded.flatten(), torch.zeros(padded.shape, dtype=torch.float64, device=x.device)
    sums = out.view(-1)[: len(line) - 2 * reach * (width + 1)]
    alike = [[line[down * width :] for down in torch.nonzero(row_of == k).flatten().tolist()] for k in range(len(rows))]
    most = _MOST_LEVELS // max(map(len, alike))
    groups = [(w, some.tolist()) for w in rows.unique().tolist() if w for some in torch.nonzero(rows == w).split(most)]
    piece = _at_a_time(sums)
    for start in range(0, len(sums), piece):
        end = min(start + piece, len(sums))
        wide = torch.empty_like(sums[start:end])
        added = [_sum([one[start : end + 2 * reach] for one in same]) for same in alike]
        for weight, taps in groups:
            total = _sum([added[row][right : right + end - start] for row, right in taps])
            sums[start:end].add_(wide.copy_(total), alpha=weight)
    return out[..., :size, :size]


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0] if len(terms) == 1 else terms[0] + terms[1]
    for term in terms[2:]:
        total += term
    return total


def box(x: Tensor) -> Tensor:
    """Average 3 x 3 pixels."""
    return correlate(x, [[1, 1, 1]] * 3) / 9


def clipped_zoom(x: Tensor, factor: float) -> Tensor:
    """Enlarge the middle of (..., S, S) by ``factor`` >= 1 and cut it to S x S, as SciPy's ``zoom`` of order 1 does."""
    size = x.shape[-1]
    crop = math.ceil(size / factor)
    grown = round(crop * factor)
    first = (grown - size) // 2
    at = torch.arange(first, first + size, dtype=torch.float64, device=x.device) * ((crop - 1) / (grown - 1))
    low = at.long().clamp(max=crop - 2)
    weight = (at - low).to(x.dtype)
    low = low + (size - crop) // 2
    x = torch.lerp(x.index_select(-2, low), x.index_select(-2, low + 1), weight[:, None])
    # Along rows a gather is faster.
    low = low.expand(x.shape)
    return torch.lerp(x.gather(-1, low), x.gather(-1, low + 1), weight)


def pieces(x: Tensor, length: int) -> Tensor:
    """View contiguous memory as all its pieces of some length, (places, length): reading many of them is fast."""
    return x.as_strided((x.numel() - length + 1, length), (1, 1))


def motion(x: Tensor, radius: int, sigma: float, angle: Tensor) -> Tensor:
    """Smear images as ImageMagick's motion blur does: a one-sided Gaussian trail.

    Args:
        x: float (N, C, S, S).
        radius: the trail has 2 * radius + 1 taps, one pixel apart.
        sigma: of the taps' weights, in pixels.
        angle: float64 (N,), direction of the trail in degrees, clockwise from the x axis.
    """
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * radius + 1)]
    shares = [weight / sum(weights) for weight in weights]
    turn = torch.deg2rad(angle).repeat_interleave(x.shape[1])
    return in_parts(functools.partial(_smear, shares), x, turn)


def _smear(shares: list[float], x: Tensor, turn: Tensor) -> Tensor:
    """Add shares of planes (P, S, S) along trails in directions (P,), in radians."""
    size, reach = x.shape[-1], len(shares) - 1
    padded = pad(x, reach, -1, "nearest")
    everywhere, width = pieces(padded, size), padded.shape[-1]
    tap = torch.arange(len(shares), dtype=torch.float64, device=x.device)[:, None]
    right, down = (torch.ceil(tap * part - 0.5).long() for part in (torch.cos(turn), torch.sin(turn)))
    rows = (torch.arange(size, device=x.device) + down[:, :, None]).clamp_(0, size - 1)
    rows += torch.arange(len(x), device=x.device)[:, None] * size
    place = (rows * width + (reach + right)[:, :, None]).flatten(1)
    out = torch.zeros_like(x)
    for share, at in zip(shares, place, strict=True):
        out.add_(everywhere.index_select(0, at).view_as(x), alpha=share)
    return out


def bilinear(x: Tensor, rows: Tensor, columns: Tensor, border: Border) -> Tensor:
    """Read (N, C, S, S) at real-valued ``rows`` and ``columns``, both (N, S, S), between four pixels each."""
    n, channels, size, _ = x.shape
    top, left = rows.floor(), columns.floor()
    down, right = (rows - top).to(x.dtype)[:, None], (columns - left).to(x.dtype)[:, None]
    upper, lower = (fold(at, size, border).mul_(size) for at in (top, top + 1))
    before, after = (fold(at, size, border) for at in (left, left + 1))
    flat = x.reshape(n, channels, -1)

    def between(row: Tensor) -> Tensor:
        first, second = ((row + column).long().view(n, 1, -1).expand(-1, channels, -1) for column in (before, after))
        return flat.gather(2, first).view_as(x).lerp_(flat.gather(2, second).view_as(x), right)

    return between(upper).lerp_(between(lower), down)

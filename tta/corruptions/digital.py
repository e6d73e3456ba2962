"""Digital and geometric corruptions.

x is float64 (N, 3, S, S) in [0, 1] if not said, and what is returned may leave that range.
"""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from tta.corruptions import filters
from tta.corruptions.constants import Constants
from tta.corruptions.rng import Draw


def contrast(x: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Shrink the distance to the mean of each channel."""
    (factor,) = constants
    # The sum of the levels is whole, and so does not depend on the order of addition, nor on the batch.
    total = (x.sum(dim=(2, 3), keepdim=True) * 255).round_()
    mean = total / (255 * x.shape[-1] ** 2)
    return (x - mean).mul_(factor).add_(mean)


def brightness(x: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Raise the value of HSV."""
    (offset,) = constants
    hue, saturation, value = rgb_to_hsv(x)
    return hsv_to_rgb(hue, saturation, (value + offset).clamp(0, 1))


def saturate(x: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Scale and shift the saturation of HSV; grey has hue 0, so an offset makes it reddish."""
    factor, offset = constants
    hue, saturation, value = rgb_to_hsv(x)
    return hsv_to_rgb(hue, (saturation * factor + offset).clamp(0, 1), value)


def rgb_to_hsv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split (N, 3, S, S) into hue, saturation and value, (N, S, S) in [0, 1] each; hue and saturation of grey are 0."""
    red, green, blue = x.unbind(1)
    value = x.amax(1)
    delta = value - x.amin(1)
    # The greatest of the three, the last of equals; of grey the first. Zeros and ones, as torch.where is slow.
    coloured = delta.clone().gt_(0)
    blues = blue.clone().eq_(value).mul_(coloured)
    greens = green.clone().eq_(value).mul_(coloured).mul_(1 - blues)
    reds = 1 - blues - greens
    difference = (green - blue).mul_(reds).add_((blue - red).mul_(greens)).add_((red - green).mul_(blues))
    least = torch.finfo(x.dtype).tiny
    hue = difference.div_(delta.clamp(min=least)).add_(greens.mul_(2)).add_(blues.mul_(4)).div_(6)
    hue -= hue.floor()
    return hue, delta.div_(value.clamp(min=least)), value


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Join hue, saturation and value, (N, S, S) in [0, 1] each, to (N, 3, S, S)."""
    part = hue * 6
    sector = part.floor()
    part -= sector
    low = value * (1 - saturation)
    falling = value * (1 - part * saturation)
    rising = value * (1 - (1 - part) * saturation)
    choices = torch.stack((value, falling, low, low, rising, value)).flatten()
    # Red, green and blue run through the same six values, shifted by two sectors.
    shift = torch.tensor([0, 4, 2], dtype=hue.dtype, device=hue.device)
    sector = sector[:, None] + shift[:, None, None]
    sector -= (sector / 6).floor_().mul_(6)
    place = sector.mul_(value.numel()).long()
    place += torch.arange(value.numel(), device=value.device).view_as(value)[:, None]
    return choices.index_select(0, place.flatten()).view_as(place)


def pixelate(levels: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Shrink and enlarge uint8 (N, 3, S, S) again, both by averages of whole pixels."""
    (scale,) = constants
    size = levels.shape[-1]
    # Whole levels and their means are exact in single precision.
    small = box_resize(levels.float(), int(size * scale))
    return box_resize(small, size).to(torch.uint8)


def box_resize(x: Tensor, size: int) -> Tensor:
    """Resize levels (N, C, S, S) to (N, C, size, size) with a box filter, columns first, rounded after each axis."""
    old = x.shape[-1]
    scale = old / size
    support = max(scale, 1) / 2
    centre = (torch.arange(size, dtype=torch.float64) + 0.5) * scale
    first = (centre - support + 0.5).long().clamp(min=0)
    count = (centre + support + 0.5).long().clamp(max=old) - first
    taps = first + torch.arange(int(count.max()))[:, None]
    # A tap that is none reads a row of zeros.
    taps = torch.where(taps < first + count, taps, old).to(x.device)
    share = count[:, None].to(x)
    for _ in range(2):  # turned, as whole rows are faster to read
        rows = torch.nn.functional.pad(x.mT, (0, 0, 0, 1))
        total = rows.index_select(-2, taps[0])
        for tap in taps[1:]:
            total += rows.index_select(-2, tap)
        x = total.div_(share).add_(0.5).floor_()
    return x


def jpeg_compression(x: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Encode as JPEG with Pillow and decode; always on the CPU, image by image."""
    quality = int(constants[0])
    levels = (x * 255).round_().to(torch.uint8).permute(0, 2, 3, 1)
    images = levels.contiguous().cpu().numpy()
    out = np.empty_like(images)
    for image, slot in zip(images, out, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        # The pixels of Pillow's decoder, in a fraction of its time.
        simplejpeg.decode_jpeg(buffer.getbuffer(), "RGB", buffer=slot)
    return torch.from_numpy(out).to(x.device).permute(0, 3, 1, 2).contiguous().double().div_(255)


def elastic_transform(x: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Warp by a random affine map, then by a random smooth field."""
    alpha, sigma, reach = constants
    size = x.shape[-1]
    draw.prepare(*((3 * 2, 2 * size**2) if alpha else (3 * 2,)))
    x = filters.bilinear(x, *affine_grid(size, reach, draw), border="mirror")
    if alpha == 0:
        return x
    noise = 2 * draw.uniform(2, size, size) - 1
    field = filters.gaussian(noise, sigma, border="symmetric", truncate=3).mul_(alpha)
    line = torch.arange(size, device=x.device)
    return filters.bilinear(x, line[:, None] + field[:, 0], line + field[:, 1], border="symmetric")


def affine_grid(size: int, reach: float, draw: Draw) -> tuple[Tensor, Tensor]:
    """Return the rows and columns, float64 (N, size, size), at which a random affine map reads the image.

    The map takes three corners of a square about the centre to those corners moved by up to ``reach`` pixels per axis.
    """
    centre, half = size // 2, size // 3
    corners = torch.tensor([[half, half], [half, -half], [-half, -half]]) + centre  # x, y of each
    moved = corners.to(draw.device) + reach * (2 * draw.uniform(3, 2) - 1)
    x0, y0 = moved[:, 1, 0, None, None], moved[:, 1, 1, None, None]
    down, left = moved[:, 0] - moved[:, 1], moved[:, 2] - moved[:, 1]
    line = torch.arange(size, device=draw.device)
    dx, dy = line - x0, line[:, None] - y0

    def cross(ax: Tensor, ay: Tensor, bx: Tensor, by: Tensor) -> Tensor:
        return ax * by - ay * bx

    (downx, downy), (leftx, lefty) = ([v[:, i, None, None] for i in (0, 1)] for v in (down, left))
    area = cross(downx, downy, leftx, lefty)
    rows = centre - half + 2 * half * cross(dx, dy, leftx, lefty) / area
    columns = centre + half - 2 * half * cross(downx, downy, dx, dy) / area
    return rows, columns

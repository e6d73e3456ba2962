"""Weather: x is float64 (N, 3, S, S) in [0, 1]; what a function returns may leave that range."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tta.corruptions import filters
from tta.corruptions.constants import Constants
from tta.corruptions.rng import Draw

# The generator chooses among the first five of its six photographs.
PHOTOGRAPHS = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
GREY = (0.299, 0.587, 0.114)


def snow(x: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Whiten the image and add flakes that fall within 45 degrees of the vertical, twice: as drawn and upside down."""
    mean, deviation, zoom, threshold, radius, sigma, mix = constants
    size = x.shape[-1]
    draw.prepare(size**2, 1)
    layer = filters.clipped_zoom(draw.normal(1, size, size).mul_(deviation).add_(mean), zoom)
    layer.mul_(layer >= threshold)
    layer = to_levels(layer)
    layer = to_levels(filters.motion(layer, int(radius), sigma, draw.uniform() * 90 - 135))
    grey = (GREY[0] * x[:, :1]).add_(GREY[1] * x[:, 1:2]).add_(GREY[2] * x[:, 2:])
    white = torch.maximum(x, grey.mul_(1.5).add_(0.5)).mul_(1 - mix)
    return (mix * x).add_(white).add_(layer).add_(layer.flip(-1, -2))


def to_levels(x: Tensor) -> Tensor:
    """Clip to [0, 1] and round down to multiples of 1/255, as a conversion to uint8 does."""
    return x.clamp(0, 1).mul_(255).floor_().div_(255)


def frost(x: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Add a random crop of a random photograph of frost."""
    image_weight, frost_weight, step = constants
    photographs, sizes = frost_photographs(int(step))
    size, least = x.shape[-1], int(sizes.min())
    if size >= least:
        raise ValueError(
            f"frost is for images of less than {least} x {least} pixels at this scale, the size of a photograph, "
            f"got {size} x {size}: resize the images, or leave frost out"
        )
    photographs, sizes = photographs.to(x.device), sizes.to(x.device)
    draw.prepare(1, 2)
    which = draw.integers(0, len(sizes))
    corner = draw.integers(0, sizes[which] - size, 2)
    line = torch.arange(size, device=x.device)
    _, height, width, channels = photographs.shape
    place = ((which[:, None] * height + corner[:, :1] + line) * width + corner[:, 1:]) * channels
    rows = filters.pieces(photographs, size * channels).index_select(0, place.flatten())
    crop = rows.view(len(x), size, size, channels).permute(0, 3, 1, 2).contiguous()
    return (x * 255).mul_(image_weight).add_(crop.double().mul_(frost_weight)).div_(255)


@functools.cache
def frost_photographs(step: int) -> tuple[Tensor, Tensor]:
    """Read the photographs of frost from the package ``imagecorruptions``, without importing it.

    OpenCV's bilinear resize by 1 / step, for odd steps, reads exactly the middle pixel of every step x step.

    Returns:
        uint8 (5, H, W, 3), each in the top left corner, and int64 (5, 2), their heights and widths.

    Raises:
        FileNotFoundError: if the package or one of its photographs is missing.
    """
    folder = photograph_folder()
    images = []
    for name in PHOTOGRAPHS:
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(
                f"the corruption 'frost' needs the photograph {path}, which is missing: "
                "reinstall the package it comes from (pip install --force-reinstall imagecorruptions)"
            )
        with Image.open(path) as file:
            images.append(torch.from_numpy(np.array(file.convert("RGB")))[step // 2 :: step, step // 2 :: step])
    sizes = torch.tensor([image.shape[:2] for image in images])
    height, width = sizes.amax(0).tolist()
    stack = torch.zeros(len(images), height, width, 3, dtype=torch.uint8)
    for slot, image in zip(stack, images, strict=True):
        slot[: image.shape[0], : image.shape[1]] = image
    return stack, sizes


def photograph_folder() -> Path:
    """Find the folder of the photographs without importing their package, which fails with today's libraries."""
    spec = importlib.util.find_spec("imagecorruptions")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "the corruption 'frost' needs the photographs of the package imagecorruptions, which is not installed: "
            "pip install imagecorruptions"
        )
    return Path(spec.origin).parent / "frost"


def fog(x: Tensor, constants: Constants, draw: Draw) -> Tensor:
    """Add a random heightmap, then darken so that the image's maximum stays what it was."""
    amount, decay = constants
    size = x.shape[-1]
    peak = x.amax(dim=(1, 2, 3), keepdim=True)
    mist = plasma(1 << (size - 1).bit_length(), decay, draw)[:, None, :size, :size]
    return (x + amount * mist).mul_(peak).div_(peak + amount)


def plasma(size: int, decay: float, draw: Draw) -> Tensor:
    """Make random heightmaps by the diamond-square algorithm.

    Args:
        size: of the maps, a power of two; they wrap around.
        decay: the roughness is divided by this from one scale to the next.
        draw: of N streams, one for each map.

    Returns:
        float64 (N, size, size), from 0 to 1 in each map.
    """
    heights = torch.zeros(draw.count, size, size, dtype=torch.float64, device=draw.device)
    levels = size.bit_length() - 1
    draw.prepare(*(4**level for level in range(levels) for _ in range(3)))
    step, wibble = size, 100.0
    while step >= 2:
        half = step // 2
        corner = heights[:, ::step, ::step].clone()
        beside, below = corner + corner.roll(-1, 2), corner + corner.roll(-1, 1)
        centre = _rough_mean(beside + beside.roll(-1, 1), wibble, draw)
        heights[:, half::step, half::step] = centre
        heights[:, ::step, half::step] = _rough_mean(centre + centre.roll(1, 1) + beside, wibble, draw)
        heights[:, half::step, ::step] = _rough_mean(centre + centre.roll(1, 2) + below, wibble, draw)
        step, wibble = half, wibble / decay
    heights -= heights.amin(dim=(1, 2), keepdim=True)
    return heights.div_(heights.amax(dim=(1, 2), keepdim=True))


def _rough_mean(total: Tensor, wibble: float, draw: Draw) -> Tensor:
    """Average four neighbours, given their sum, and add noise; its amplitude is indeed the square of the wibble."""
    return (2 * draw.uniform(*total.shape[1:])).sub_(1).mul_(wibble * wibble).add_(total.div_(4))

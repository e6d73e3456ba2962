"""The test-time augmentation of CoTTA (arXiv:2203.13591), which RoTTA and ROID use as well."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torchvision.transforms.v2.functional as image_ops
from torch import Tensor
from torchvision.transforms import InterpolationMode

COLOURS = {
    "brightness": image_ops.adjust_brightness,
    "contrast": image_ops.adjust_contrast,
    "saturation": image_ops.adjust_saturation,
    "hue": image_ops.adjust_hue,
    "gamma": image_ops.adjust_gamma,
}
RANGES = {  # the whole ranges, and the soft ones
    "brightness": ((0.6, 1.4), (0.8, 1.2)),
    "contrast": ((0.7, 1.3), (0.85, 1.15)),
    "saturation": ((0.5, 1.5), (0.75, 1.25)),
    "hue": ((-0.06, 0.06), (-0.03, 0.03)),
    "gamma": ((0.7, 1.3), (0.85, 1.15)),
    "angle": ((-15.0, 15.0), (-8.0, 8.0)),
    "scale": ((0.9, 1.1), (0.95, 1.05)),
    "sigma": ((0.001, 0.5), (0.001, 0.25)),
}
NOISE = 0.005


class Draw(NamedTuple):
    """What is drawn once for a batch."""

    colours: dict[str, float]  # factors, in the order that they are applied in
    angle: float  # degrees, clockwise
    shift: tuple[int, int]  # pixels to the right and down
    scale: float
    sigma: float  # of the blur, pixels
    flip: bool


def augment(
    images: Tensor,
    draws: torch.Generator,
    noise: torch.Generator | None = None,
    soft: bool = False,
    padding: str = "edge",
) -> Tensor:
    """Change colours and place of images at random, as CoTTA does: one draw for the whole batch, noise for each pixel.

    Colours in a random order, padding by half of each side, rotation with shift and scaling, a slight blur, the
    centre cut out, a flip, noise.

    Args:
        images: (N, 3, H, W), in [0, 1].
        draws: generator on the CPU, for what is drawn once for a batch.
        noise: generator on the images' device; without it there is neither blur nor noise.
        soft: draw from narrower ranges.
        padding: ``edge`` or ``reflect``.

    Returns:
        New images (N, 3, H, W), in [0, 1].
    """
    height, width = images.shape[-2:]
    return apply(images, draw(draws, height, width, soft), padding, noise)


def draw(generator: torch.Generator, height: int, width: int, soft: bool = False) -> Draw:
    """Draw parameters for images of this size, all uniform over their ranges."""
    *units, right, down, flip = torch.rand(len(RANGES) + 3, generator=generator, dtype=torch.float64).tolist()
    ranges = [pair[soft] for pair in RANGES.values()]
    value = {name: low + unit * (high - low) for name, (low, high), unit in zip(RANGES, ranges, units, strict=True)}
    names = list(COLOURS)
    order = torch.randperm(len(names), generator=generator).tolist()
    return Draw(
        colours={names[i]: value[names[i]] for i in order},
        angle=value["angle"],
        # Up to a sixteenth of the padded side, which is twice the image's.
        shift=(round((2 * right - 1) * width / 8), round((2 * down - 1) * height / 8)),
        scale=value["scale"],
        sigma=value["sigma"],
        flip=flip < 0.5,
    )


@torch.no_grad()
def apply(images: Tensor, drawn: Draw, padding: str = "edge", noise: torch.Generator | None = None) -> Tensor:
    """Augment images with what is drawn; see ``augment``."""
    height, width = images.shape[-2:]
    with torch.autocast(images.device.type, enabled=False):
        x = images.clamp(0, 1)
        for name, factor in drawn.colours.items():
            x = COLOURS[name](x, factor)
        x = image_ops.pad(x, [width // 2, height // 2], padding_mode=padding)
        x = image_ops.affine(
            x, drawn.angle, list(drawn.shift), drawn.scale, shear=[0.0, 0.0], interpolation=InterpolationMode.BILINEAR
        )
        if noise is not None:
            x = image_ops.gaussian_blur(x, [5, 5], [drawn.sigma, drawn.sigma])
        x = image_ops.center_crop(x, [height, width])
        if drawn.flip:
            x = image_ops.horizontal_flip(x)
        if noise is not None:
            x = x + NOISE * torch.randn(x.shape, generator=noise, device=x.device, dtype=x.dtype)
        return x.clamp(0, 1)

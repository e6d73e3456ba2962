"""The 19 common corruptions of Hendrycks & Dietterich 2019 (https://arxiv.org/abs/1903.12261), batched.

``corrupt(images, name, severity, index=index)`` corrupts uint8 images as the generators of CIFAR-10-C (32 pixels) and
ImageNet-C (224 pixels) do, on any device.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tta.corruptions import blur, digital, noise, weather
from tta.corruptions.constants import SCALES, Constants
from tta.corruptions.rng import Draw, make_key
from tta.corruptions.spatter import spatter
from tta.utils.validation import check_int

__all__ = ["BENCHMARK", "CORRUPTIONS", "SCALES", "choose_scale", "corrupt", "recipe_digest"]

_FUNCTIONS: dict[str, Callable[[Tensor, Constants, Draw], Tensor]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": digital.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
    "speckle_noise": noise.speckle_noise,
    "gaussian_blur": blur.gaussian_blur,
    "spatter": spatter,
    "saturate": digital.saturate,
}

CORRUPTIONS: tuple[str, ...] = tuple(_FUNCTIONS)
BENCHMARK: tuple[str, ...] = CORRUPTIONS[:15]

# These take the uint8 levels of the images as they are.
_OF_LEVELS = ("defocus_blur", "pixelate")

# Pixels worked on at a time: few enough to stay in a CPU's cache, many enough to keep a GPU busy.
_PIXELS_CPU, _PIXELS_ELSEWHERE = 64 * 32**2, 4096 * 32**2
_LEAST_SIZE = 16


def corrupt(
    images: Tensor, name: str, severity: int, *, index: Tensor, seed: int = 0, scale: int | None = None
) -> Tensor:
    """Corrupt images as the generator of CIFAR-10-C or ImageNet-C does.

    Every image has its own random stream, given by ``seed``, ``name``, ``severity`` and its ``index``: its pixels do
    not depend on the other images of the batch, nor on how the data set is split into batches.

    Args:
        images: uint8 (N, 3, S, S), RGB, 0 to 255.
        name: one of ``CORRUPTIONS``.
        severity: 1 to 5.
        index: int64 (N,), the place of each image in its data set.
        seed: any whole number.
        scale: see ``choose_scale``.

    Returns:
        uint8 (N, 3, S, S), 0 to 255, on the device of ``images``.

    Raises:
        ValueError: for an unknown name, a severity or scale out of range, images or indices of a wrong type or shape,
            or images that the photographs of ``frost`` do not cover.
        FileNotFoundError: for ``frost`` without the package ``imagecorruptions``.
    """
    _check_choice(name, severity)
    _check_tensors(images, index)
    constants = SCALES[choose_scale(images.shape[-1], scale)][name][severity - 1]
    key = make_key(seed, name, severity)
    index = index.to(images.device)
    out = torch.empty(images.shape, dtype=torch.uint8, device=images.device)
    pixels = _PIXELS_CPU if images.device.type == "cpu" else _PIXELS_ELSEWHERE
    chunk = max(1, pixels // images.shape[-1] ** 2)
    for start in range(0, len(images), chunk):
        part = slice(start, start + chunk)
        levels = images[part].contiguous()
        x = levels if name in _OF_LEVELS else levels.double().div_(255)
        x = _FUNCTIONS[name](x, constants, Draw(key, index[part]))
        # The generator rounds down, so grey levels fall by half a level on average; so do they here.
        out[part] = x if x.dtype == torch.uint8 else x.clamp_(0, 1).mul_(255)
    return out


def choose_scale(size: int, scale: int | None = None) -> int:
    """Return the scale whose constants are meant for images of ``size`` pixels: 32 (CIFAR-10-C) or 224 (ImageNet-C).

    Radii, displacements and so on are in pixels, so a scale has its look on images of its own size alone. Images of
    another size are corrupted with the constants of the scale that is asked for, as they are, and only if one is.

    Raises:
        ValueError: if there is no such scale, or none is given for images of another size, or they are too small.
    """
    made_for = " or ".join(map(str, SCALES))
    if scale is not None and (isinstance(scale, bool) or scale not in SCALES):
        raise ValueError(f"scale must be {made_for}, or none for images of these sizes, got {scale!r}")
    if size < _LEAST_SIZE:
        raise ValueError(
            f"images must have at least {_LEAST_SIZE} x {_LEAST_SIZE} pixels, got {size} x {size}: enlarge them"
        )
    if scale is None and size not in SCALES:
        raise ValueError(
            f"there are constants for images of {made_for} pixels, got {size} x {size}: resize the images, or say with "
            f"scale={' or scale='.join(map(str, SCALES))} which constants they are to be corrupted with"
        )
    return size if scale is None else scale


@functools.cache
def recipe_digest() -> str:
    """Name of the recipe's version, made of its code: what an older one made is never taken for its own."""
    recipe = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        recipe.update(file.read_bytes())
    return recipe.hexdigest()[:10]


def _check_choice(name: str, severity: int) -> None:
    if name not in _FUNCTIONS:
        close = difflib.get_close_matches(str(name), CORRUPTIONS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"there is no corruption {name!r}; {hint}Choose one of: {', '.join(CORRUPTIONS)}")
    check_int("severity", severity, 1, 5)


def _check_tensors(images: Tensor, index: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise ValueError(
            f"images must be uint8, 0 to 255, got {images.dtype}: corrupt them before they become float, or convert "
            "them back with (images * 255).round().to(torch.uint8)"
        )
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ValueError(
            f"images must be square RGB of shape (N, 3, S, S), got {tuple(images.shape)}: permute (N, S, S, 3) with "
            "images.permute(0, 3, 1, 2)"
        )
    if index.dtype != torch.int64 or index.shape != images.shape[:1]:
        raise ValueError(
            f"index must be int64 of shape ({len(images)},), one for each image, got {index.dtype} of shape "
            f"{tuple(index.shape)}: give each image's place in its data set"
        )

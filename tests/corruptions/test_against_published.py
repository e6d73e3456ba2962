"""Published pixels: given again where nothing is random, and explained by some draw where something is."""

from __future__ import annotations

import importlib
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.published_images import Published
from tta.corruptions import blur, corrupt, weather
from tta.corruptions.constants import CIFAR
from tta.corruptions.rng import Draw

EXACT = (
    "brightness",
    "contrast",
    "defocus_blur",
    "zoom_blur",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
    "saturate",
)
SEVERITIES = (1, 2, 3, 4, 5)
N, SOME = 100, 20
# Where only the constants differ, three severities stand for all; the others' constants are in test_constants.py.
three_severities = pytest.mark.parametrize("severity", [1, 3, 5])


class Chosen(Draw):
    """Streams whose whole numbers are given, one tensor for each call."""

    def __init__(self, *integers: Tensor) -> None:
        super().__init__((0, 0), torch.arange(len(integers[0])))
        self.given = list(integers)

    def integers(self, low: int, high: int | Tensor, *shape: int) -> Tensor:
        return self.given.pop(0)


def unit(images: Tensor) -> Tensor:
    return images.double() / 255


def truncate(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255).to(torch.uint8)


def draws(n: int) -> Draw:
    return Draw((0, 0), torch.arange(n))


def assert_close_levels(ours: Tensor, theirs: Tensor, severity: int, equal: float) -> None:
    """Expect no value to differ by more than one level, and at least this share to be the same."""
    difference = (ours.int() - theirs.int()).abs()
    worst = difference.flatten(1).amax(1)
    far = torch.nonzero(worst > 1).flatten().tolist()
    assert not far, f"severity {severity}: images {far} differ by up to {int(worst.max())}"
    assert float((difference == 0).double().mean()) >= equal, f"severity {severity}"


@pytest.mark.parametrize("name", EXACT)
def test_published__pixels_without_chance_are_ours(published: Published, name: str) -> None:
    for severity in SEVERITIES:
        ours = corrupt(published.clean(N), name, severity, index=torch.arange(N))
        assert_close_levels(ours, published.corrupted(name, severity, N), severity, equal=0.999)


def angles_between_steps(radius: int) -> list[float]:
    """One angle from each interval of [-45, 45] in which all taps of the trail read the same pixels."""
    steps = {-45.0, 45.0}
    for tap in range(1, 2 * radius + 1):
        shares = np.arange(0.5, tap) / tap
        for angle in np.degrees([*np.arcsin(shares), *np.arccos(shares)]):
            if angle < 45:
                steps |= {float(angle), -float(angle)}
    edges = sorted(steps)
    return [(low + high) / 2 for low, high in itertools.pairwise(edges)]


@pytest.mark.parametrize("severity", [1, 5])
def test_published__motion_blur_is_ours_at_an_angle(published: Published, severity: int) -> None:
    x, theirs = unit(published.clean(SOME)), published.corrupted("motion_blur", severity, SOME)
    constants = CIFAR["motion_blur"][severity - 1]
    best, least = torch.zeros_like(theirs), torch.full((SOME,), torch.inf)
    for angle in angles_between_steps(int(constants[0])):
        ours = truncate(blur.motion_blur_at(x, constants, torch.full((SOME,), angle, dtype=torch.float64)))
        distance = (ours.float() - theirs.float()).abs().mean((1, 2, 3))
        best[distance < least] = ours[distance < least]
        least = torch.minimum(distance, least)
    # ImageMagick rounds to 16 bits before it truncates to 8: values just below a whole level end up one level higher.
    assert_close_levels(best, theirs, severity, equal=0.99)


def find_crop(wanted: Tensor, known: Tensor, tolerance: float, photographs: list[Tensor]) -> list[int]:
    """Return the photograph, row and column at which all known pixels are the wanted (S, S, 3), to a tolerance."""
    size = len(wanted)
    places = torch.nonzero(known)
    places = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:12]]
    for which, photograph in enumerate(photographs):
        height, width = photograph.shape[0] - size, photograph.shape[1] - size
        fits = torch.ones(height, width, dtype=torch.bool)
        for row, column in places.tolist():
            there = photograph[row : row + height, column : column + width]
            fits &= ((there - wanted[row, column]).abs() <= tolerance).all(-1)
        if fits.any():
            return [which, *torch.nonzero(fits)[0].tolist()]
    raise AssertionError("no crop of a photograph fits")


@three_severities
def test_published__frost_is_ours_of_some_crop(published: Published, severity: int) -> None:
    clean, theirs = published.clean(SOME), published.corrupted("frost", severity, SOME)
    image_weight, frost_weight, step = constants = CIFAR["frost"][severity - 1]
    stack, sizes = weather.frost_photographs(int(step))
    photographs = [image[:height, :width].double() for image, (height, width) in zip(stack, sizes, strict=True)]
    wanted = ((theirs + 0.5 - image_weight * clean.double()) / frost_weight).permute(0, 2, 3, 1)
    known = (theirs < 255).all(1)
    tolerance = 0.5 / frost_weight + 1e-6
    crops = [find_crop(w, k, tolerance, photographs) for w, k in zip(wanted, known, strict=True)]
    found = torch.tensor(crops)
    ours = truncate(weather.frost(unit(clean), constants, Chosen(found[:, 0], found[:, 1:])))
    assert_close_levels(ours, theirs, severity, equal=0.999)


def meet(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return what intervals (N, 3, S, S), one for each channel, have in common, within [0, 1]."""
    return low.amax(1).clamp(0, 1), high.amin(1).clamp(0, 1)


def level_bounds(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values between which a truncation to uint8 gives these levels."""
    return unit(levels), torch.where(levels == 255, torch.inf, (levels.double() + 1) / 255)


@three_severities
def test_published__fog_is_ours_of_some_mist(
    published: Published, severity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, theirs = unit(published.clean(N)), published.corrupted("fog", severity, N)
    amount, _ = constants = CIFAR["fog"][severity - 1]
    peak = x.amax((1, 2, 3), keepdim=True)
    low, high = meet(*(((v * (peak + amount) / peak) - x) / amount for v in level_bounds(theirs)))
    monkeypatch.setattr(weather, "plasma", lambda size, decay, draw: (low + high) / 2)
    assert_close_levels(truncate(weather.fog(x, constants, draws(N))), theirs, severity, equal=0.999)
    # The mist is the same in all channels and goes from 0 to 1 in every image.
    assert (low - high).max() < 1e-9
    assert low.amin((1, 2)).max() < 1e-9
    assert high.amax((1, 2)).min() > 1 - 1e-9


@three_severities
def test_published__snow_is_our_white_and_even_flakes(published: Published, severity: int) -> None:
    x, theirs = unit(published.clean(N)), published.corrupted("snow", severity, N)
    mean, deviation, zoom, _, *others = CIFAR["snow"][severity - 1]
    no_flakes = weather.snow(x, (mean, deviation, zoom, torch.inf, *others), draws(N))
    # The flakes are whole levels, so what is truncated is what lies under them; 1e-9 is for sums that are whole too.
    flakes = (theirs.int() - truncate(no_flakes + 1e-9).int())[:, :, None]
    known = (theirs < 255).all(1)
    # The published grey is in single precision, which can cost a level.
    assert flakes.min() >= -1
    assert (flakes < 0).double().mean() < 1e-4
    spread = (flakes.amax(1) - flakes.amin(1))[:, 0][known]
    assert spread.max() <= 1
    assert (spread == 0).double().mean() > 0.999
    grey = flakes.amin(1)[:, 0]
    turned = (grey - grey.flip(1, 2))[known & known.flip(1, 2)]
    assert turned.abs().max() <= 1
    assert (turned == 0).double().mean() > 0.999


@pytest.mark.parametrize("severity", [1, 3])
def test_published__water_is_ours_of_some_sheen(
    published: Published, severity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spatter = importlib.import_module("tta.corruptions.spatter")
    x, theirs = unit(published.clean(N)), published.corrupted("spatter", severity, N)
    constants = CIFAR["spatter"][severity - 1]
    light = constants[4] * torch.tensor([175, 238, 238]).view(3, 1, 1) / 255
    low, high = meet(*((v - x) / light for v in level_bounds(theirs)))
    sheen = torch.where(low < 1e-9, 0, (low + high) / 2)
    monkeypatch.setattr(spatter, "water_sheen", lambda levels: sheen)
    assert_close_levels(truncate(spatter.spatter(x, constants, draws(N))), theirs, severity, equal=0.999)
    # The brightest drop of an image reflects all light.
    assert (high.amax((1, 2)) > 1 - 1e-9).all()


@pytest.mark.parametrize("severity", [4, 5])
def test_published__mud_is_ours_of_some_mask(
    published: Published, severity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spatter = importlib.import_module("tta.corruptions.spatter")
    x, theirs = unit(published.clean(N)), published.corrupted("spatter", severity, N)
    room = torch.tensor([63, 42, 20], dtype=torch.float64).view(3, 1, 1) / 255 - x
    ends = torch.stack([(v - x) / room for v in level_bounds(theirs)])
    useless = room.abs() < 1e-6
    low, high = meet(torch.where(useless, 0, ends.amin(0)), torch.where(useless, 1, ends.amax(0)))
    mask = torch.where(low < 1e-9, 0, ((low + high) / 2).clamp(min=0.8))
    assert (high[mask > 0] >= 0.8).all()
    monkeypatch.setattr(spatter.filters, "gaussian", lambda x, sigma: mask)
    ours = truncate(spatter.spatter(x, CIFAR["spatter"][severity - 1], draws(N)))
    assert_close_levels(ours, theirs, severity, equal=0.999)


def test_published__glass_blur_is_ours_of_some_shifts(published: Published) -> None:
    """At severity 1 nothing is blurred, and each pixel is copied from one of four."""
    clean, theirs = published.clean(N), published.corrupted("glass_blur", 1, N)
    shift = torch.zeros(N, 2, 32, 32, dtype=torch.int64)
    for down, right in ((-1, -1), (-1, 0), (0, -1), (0, 0)):
        same = (clean.roll((-down, -right), (2, 3)) == theirs).all(1)
        for axis, by in enumerate((down, right)):
            shift[:, axis] = torch.where(same, by, shift[:, axis])
    ours = truncate(blur.glass_blur(unit(clean), CIFAR["glass_blur"][0], Chosen(shift)))
    assert_close_levels(ours, theirs, 1, equal=1)


def test_published__impulses_are_0_or_255(published: Published) -> None:
    """Ours too."""
    clean = published.clean(N)
    for severity in SEVERITIES:
        ours = corrupt(clean, "impulse_noise", severity, index=torch.arange(N))
        for images in (published.corrupted("impulse_noise", severity, N), ours):
            assert ((images == clean) | (images == 0) | (images == 255)).all()


def test_published__shot_noise_counts_whole_photons(published: Published) -> None:
    """So the levels that occur tell how many photons make white; ours are the same."""
    for severity in SEVERITIES:
        (photons,) = CIFAR["shot_noise"][severity - 1]
        levels = (np.arange(photons + 1) / photons * 255).astype(np.uint8).tolist()
        ours = corrupt(published.clean(N), "shot_noise", severity, index=torch.arange(N))
        for images in (published.corrupted("shot_noise", severity, N), ours):
            assert set(images.unique().tolist()) == set(levels)

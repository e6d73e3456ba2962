"""The augmentation of CoTTA: ranges of what is drawn, and each operation against plain formulas."""

from __future__ import annotations

import colorsys
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tta.methods.common.augment import Draw, apply, augment, draw

NOTHING = Draw(colours={}, angle=0.0, shift=(0, 0), scale=1.0, sigma=0.001, flip=False)
FULL = {"brightness": (0.6, 1.4), "contrast": (0.7, 1.3), "saturation": (0.5, 1.5), "hue": (-0.06, 0.06)}
FULL |= {"gamma": (0.7, 1.3), "angle": (-15, 15), "scale": (0.9, 1.1), "sigma": (0.001, 0.5)}
SOFT = {"brightness": (0.8, 1.2), "contrast": (0.85, 1.15), "saturation": (0.75, 1.25), "hue": (-0.03, 0.03)}
SOFT |= {"gamma": (0.85, 1.15), "angle": (-8, 8), "scale": (0.95, 1.05), "sigma": (0.001, 0.25)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int = 2, height: int = 12, width: int = 16) -> Tensor:
    return torch.rand(n, 3, height, width, generator=generator(), dtype=torch.float64)


def changed(**kwargs: Any) -> Tensor:
    return apply(pictures(), NOTHING._replace(**kwargs))


@pytest.mark.parametrize(("soft", "ranges"), [(False, FULL), (True, SOFT)], ids=["full", "soft"])
def test_augment__draws_uniformly_over_official_ranges(soft: bool, ranges: dict[str, tuple[float, float]]) -> None:
    source = generator()
    draws = [draw(source, 32, 48, soft) for _ in range(1000)]
    for name, (low, high) in ranges.items():
        values = np.array([d.colours.get(name, getattr(d, name, None)) for d in draws])
        assert low <= values.min() < low + 0.01 * (high - low), name
        assert high - 0.01 * (high - low) < values.max() <= high, name
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.03 * (high - low)), name
    # A sixteenth of the padded side, which is twice the image's, in whole pixels; width first.
    for axis, most in enumerate((6, 4)):
        assert {d.shift[axis] for d in draws} == set(range(-most, most + 1))
    assert 0.45 < np.mean([d.flip for d in draws]) < 0.55
    orders = [tuple(d.colours) for d in draws]
    assert len(set(orders)) == math.factorial(5)
    assert {len(order) for order in orders} == {5}


def test_augment__one_draw_holds_for_whole_batch() -> None:
    same = pictures(1).expand(3, -1, -1, -1)
    without = augment(same, generator())
    assert torch.equal(without[0], without[1])
    noisy = augment(same, generator(), generator())
    difference = noisy[0] - noisy[1]
    inside = (noisy[:2] > 0.05) & (noisy[:2] < 0.95)
    assert difference[inside[0] & inside[1]].std().item() == pytest.approx(0.005 * math.sqrt(2), rel=0.15)
    assert not torch.equal(augment(same, generator(1)), without)


@pytest.mark.parametrize(
    ("size", "padding", "noise"), [((7, 9), "edge", True), ((30, 45), "reflect", True), ((8, 8), "reflect", False)]
)
def test_augment__keeps_shape_type_range_and_input(size: tuple[int, int], padding: str, noise: bool) -> None:
    images = torch.rand(3, 3, *size, generator=generator())
    before, draws = images.clone(), generator()
    for _ in range(8):
        result = augment(images, draws, generator() if noise else None, padding=padding)
        assert result.shape == images.shape
        assert result.dtype == images.dtype
        assert 0 <= result.min() <= result.max() <= 1
    assert torch.equal(images, before)


def test_augment__nothing_drawn_changes_nothing() -> None:
    for padding in ("edge", "reflect"):
        torch.testing.assert_close(apply(pictures(), NOTHING, padding=padding), pictures())


def test_augment__depends_on_given_generators_alone() -> None:
    before = torch.get_rng_state()
    first = augment(pictures(), generator(3), generator(4))
    assert torch.equal(first, augment(pictures(), generator(3), generator(4)))
    assert torch.equal(torch.get_rng_state(), before)


def test_augment__is_in_full_precision_under_autocast() -> None:
    images = pictures().float()
    expected = augment(images, generator(), generator())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(images, generator(), generator()), expected)


def grey(images: Tensor) -> Tensor:
    return torch.einsum("nchw,c->nhw", images, torch.tensor([0.2989, 0.587, 0.114], dtype=images.dtype))[:, None]


def test_augment__colours_follow_plain_formulas() -> None:
    x = pictures()
    torch.testing.assert_close(changed(colours={"brightness": 1.3}), (1.3 * x).clamp(0, 1))
    mean = grey(x).mean((2, 3), keepdim=True)
    torch.testing.assert_close(changed(colours={"contrast": 1.3}), (1.3 * x - 0.3 * mean).clamp(0, 1))
    torch.testing.assert_close(changed(colours={"saturation": 0.6}), (0.6 * x + 0.4 * grey(x)).clamp(0, 1))
    torch.testing.assert_close(changed(colours={"gamma": 0.8}), x**0.8)


def test_augment__hue_turns_by_share_of_circle() -> None:
    result = changed(colours={"hue": 0.05})
    for n, i, j in ((0, 2, 3), (1, 5, 7), (1, 11, 0)):
        h, s, v = colorsys.rgb_to_hsv(*pictures()[n, :, i, j].tolist())
        expected = colorsys.hsv_to_rgb((h + 0.05) % 1, s, v)
        assert result[n, :, i, j].tolist() == pytest.approx(expected, abs=1e-6)


def test_augment__colours_come_in_order_drawn() -> None:
    x = pictures()
    torch.testing.assert_close(changed(colours={"brightness": 0.7, "gamma": 1.2}), (0.7 * x) ** 1.2)
    torch.testing.assert_close(changed(colours={"gamma": 1.2, "brightness": 0.7}), 0.7 * x**1.2)


def test_augment__flips_left_and_right() -> None:
    torch.testing.assert_close(changed(flip=True), pictures().flip(-1))


def test_augment__shifts_into_padding() -> None:
    x = pictures()
    shifted = changed(shift=(2, -1))
    torch.testing.assert_close(shifted[..., :-1, 2:], x[..., 1:, :-2])
    torch.testing.assert_close(shifted[..., :-1, 0], x[..., 1:, 0])  # the edge goes on
    reflected = apply(x, NOTHING._replace(shift=(2, 0)), padding="reflect")
    torch.testing.assert_close(reflected[..., 0], x[..., 2])


def test_augment__turns_and_scales_bilinearly() -> None:
    x = pictures(1).numpy()[0]
    result = changed(angle=10.0, scale=1.1)[0].numpy()
    angle, height, width = math.radians(10), 12, 16
    for i, j in ((5, 7), (3, 10), (8, 4)):
        down, right = i - (height - 1) / 2, j - (width - 1) / 2
        # Where the pixel came from: turned back (positive angles turn clockwise), and shrunk.
        row = (-math.sin(angle) * right + math.cos(angle) * down) / 1.1 + (height - 1) / 2
        column = (math.cos(angle) * right + math.sin(angle) * down) / 1.1 + (width - 1) / 2
        top, left = math.floor(row), math.floor(column)
        b, a = row - top, column - left
        corners = x[:, top : top + 2, left : left + 2]
        expected = (1 - b) * ((1 - a) * corners[:, 0, 0] + a * corners[:, 0, 1])
        expected += b * ((1 - a) * corners[:, 1, 0] + a * corners[:, 1, 1])
        np.testing.assert_allclose(result[:, i, j], expected, rtol=1e-6)


def test_augment__blurs_only_together_with_noise() -> None:
    assert torch.equal(changed(sigma=0.5), changed(sigma=0.001))
    x = pictures(1)
    blurred = apply(x.expand(100, -1, -1, -1), NOTHING._replace(sigma=0.5), noise=generator()).mean(0)
    kernel = np.exp(-0.5 * (np.arange(-2, 3) / 0.5) ** 2)
    kernel /= kernel.sum()
    expected = np.einsum("cij,i,j->c", x[0, :, 3:8, 5:10].numpy(), kernel, kernel)
    np.testing.assert_allclose(blurred[:, 5, 7].numpy(), expected, atol=4 * 0.005 / 10)

"""What ``corrupt`` promises for every corruption: a new one is covered without a change here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tta.corruptions import BENCHMARK, CORRUPTIONS, corrupt
from tta.corruptions.noise import poisson_table
from tta.corruptions.weather import frost_photographs

DETERMINISTIC = {
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
    "saturate",
}
# More images than the CPU works on at a time.
N = 70
every_corruption = pytest.mark.parametrize("name", CORRUPTIONS)
# Water and mud, with and without a displacement: the first and the last severity take other branches.
ENDS = (1, 5)


def some_images(n: int = N, seed: int = 0) -> Tensor:
    """Smooth shapes, shades and grain, some so bright or dark that they are cut off."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic")
    grain = 0.1 * torch.randn(n, 3, 32, 32, generator=generator)
    return ((1.4 * smooth - 0.2 + grain).clamp(0, 1) * 255).to(torch.uint8)


def plain_images() -> Tensor:
    """Black, white and grey."""
    return torch.tensor([0, 255, 128], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 32, 32).contiguous()


def run(images: Tensor, name: str, severity: int = 5, index: Tensor | None = None, seed: int = 0) -> Tensor:
    return corrupt(images, name, severity, index=torch.arange(len(images)) if index is None else index, seed=seed)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def nothing_cached(mode: AbstractContextManager[None]) -> Iterator[None]:
    """Enter a gradient mode in which the tables of the corruptions are made anew."""
    poisson_table.cache_clear()
    frost_photographs.cache_clear()
    with mode:
        yield


def test_names__are_the_benchmarks_15_and_4_more() -> None:
    noise = ["gaussian_noise", "shot_noise", "impulse_noise"]
    blur = ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur"]
    weather = ["snow", "frost", "fog", "brightness"]
    digital = ["contrast", "elastic_transform", "pixelate", "jpeg_compression"]
    assert list(BENCHMARK) == [*noise, *blur, *weather, *digital]
    assert list(CORRUPTIONS) == [*BENCHMARK, "speckle_noise", "gaussian_blur", "spatter", "saturate"]


@every_corruption
def test_pixels__do_not_depend_on_the_batch(name: str) -> None:
    images, index = some_images(), 3 * torch.arange(N)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    for severity in ENDS:
        expected = run(images, name, severity, index)
        parts = zip(images.split([1, 2, 67]), index.split([1, 2, 67]), strict=True)
        assert torch.equal(torch.cat([run(part, name, severity, at) for part, at in parts]), expected)
        assert torch.equal(run(images[order], name, severity, index[order]), expected[order])


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(["gaussian_noise", "glass_blur", "fog"]),
    cuts=st.lists(st.integers(0, N), max_size=3),
    order=st.permutations(range(N)),
)
def test_pixels__do_not_depend_on_any_split(name: str, cuts: list[int], order: list[int]) -> None:
    images = some_images()
    expected = run(images, name)
    shuffled = torch.tensor(order)
    edges = [0, *sorted(cuts), N]
    for start, end in itertools.pairwise(edges):
        chosen = shuffled[start:end]
        assert torch.equal(run(images[chosen], name, index=chosen), expected[chosen])


@every_corruption
def test_pixels__do_not_depend_on_memory_format(name: str) -> None:
    images = some_images(9)
    layouts = {
        "channels last": images.contiguous(memory_format=torch.channels_last),
        "every other image": images.repeat_interleave(2, dim=0)[::2],
        "columns first": images.transpose(2, 3).contiguous().transpose(2, 3),
    }
    expected = run(images, name)
    for layout, same in layouts.items():
        assert torch.equal(run(same, name), expected), layout


@every_corruption
def test_pixels__do_not_depend_on_torchs_settings(name: str) -> None:
    """Neither default dtype, threads, gradient mode nor torch's own random state change a pixel."""
    images = some_images(12)  # more values than torch gives to one thread
    for severity in (1, 4):
        with torch.random.fork_rng(), threads(1):
            torch.manual_seed(1)
            before = torch.get_rng_state()
            expected = run(images, name, severity)
            assert torch.equal(torch.get_rng_state(), before)
        surroundings: dict[str, AbstractContextManager[None]] = {
            "float64": default_dtype(torch.float64),
            "bfloat16": default_dtype(torch.bfloat16),
            "two threads": threads(2),
            "no_grad": nothing_cached(torch.no_grad()),
            "inference_mode": nothing_cached(torch.inference_mode()),
            "after inference_mode": nullcontext(),
        }
        for what, surrounding in surroundings.items():
            with surrounding:
                assert torch.equal(run(images, name, severity), expected), what


@every_corruption
def test_pixels__differ_by_seed_and_index_where_random(name: str) -> None:
    images, index = some_images(20), torch.arange(20)
    for severity in ENDS:
        expected = run(images, name, severity)
        assert torch.equal(corrupt(images, name, severity, index=index), expected)  # seed 0 is the default
        for seed, at in ((1, index), (-(2**70), index), (0, index + 20), (0, index + 2**32)):
            other = run(images, name, severity, at, seed)
            assert torch.equal(other, expected) == (name in DETERMINISTIC), f"severity {severity}, seed {seed}"
    copies = some_images(1).expand(20, -1, -1, -1)
    different = len(run(copies, name).unique(dim=0))
    assert different == 1 if name in DETERMINISTIC else different > 10  # two angles may be too close to tell
    first, second = run(copies[:2], name, index=torch.tensor([7, 7]))
    assert torch.equal(first, second)


@every_corruption
def test_output__is_new_uint8_of_the_same_shape(name: str) -> None:
    images = some_images(8)
    before = images.clone()
    for severity in (1, 2, 3, 4, 5):
        out = run(images, name, severity)
        assert (out.dtype, out.shape, out.device) == (torch.uint8, images.shape, images.device)
        assert torch.equal(images, before)
        assert not torch.equal(out, before)
        assert out.data_ptr() != images.data_ptr()
    empty = run(images[:0], name)
    assert (empty.dtype, tuple(empty.shape)) == (torch.uint8, (0, 3, 32, 32))


@pytest.mark.parametrize(
    "name",
    ["defocus_blur", "glass_blur", "zoom_blur", "motion_blur", "elastic_transform", "pixelate", "gaussian_blur"],
)
def test_plain_images__stay_plain_when_pixels_move(name: str) -> None:
    """To within the level that a truncation can cost."""
    plain = plain_images()
    for severity in (1, 2, 3, 4, 5):
        assert (run(plain, name, severity).int() - plain.int()).abs().max() <= 1, f"severity {severity}"


def test_black__stays_black_where_changes_are_relative() -> None:
    black = plain_images()[:1]
    for name in ("shot_noise", "speckle_noise", "fog", "contrast", "saturate"):
        for severity in ENDS:
            assert (run(black, name, severity) == 0).all(), f"{name} at severity {severity}"


@pytest.mark.gpu
@every_corruption
def test_gpu__gives_the_cpus_pixels(name: str) -> None:
    """In any batch, and wherever the index is."""
    images = some_images()
    for severity in (1, 2, 3, 4, 5):
        expected = run(images, name, severity)
        out = run(images.cuda(), name, severity)
        assert out.device.type == "cuda"
        difference = (out.cpu().int() - expected.int()).abs()
        assert difference.max() <= 1
        assert (difference == 0).double().mean() > 0.99
        assert torch.equal(run(images[5:8].cuda(), name, severity, torch.arange(5, 8)), out[5:8])
        assert torch.equal(run(images.cuda(), name, severity, torch.arange(N).cuda()), out)

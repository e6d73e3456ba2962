"""What ``corrupt`` promises for every corruption: a new one is covered without a change here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

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
both_ends = pytest.mark.parametrize("severity", [1, 5])


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


@pytest.fixture
def default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_there_are_the_15_of_the_benchmark_and_4_more() -> None:
    noise = ["gaussian_noise", "shot_noise", "impulse_noise"]
    blur = ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur"]
    weather = ["snow", "frost", "fog", "brightness"]
    digital = ["contrast", "elastic_transform", "pixelate", "jpeg_compression"]
    assert list(BENCHMARK) == [*noise, *blur, *weather, *digital]
    assert list(CORRUPTIONS) == [*BENCHMARK, "speckle_noise", "gaussian_blur", "spatter", "saturate"]


@every_corruption
@both_ends
def test_pixels_do_not_depend_on_the_batch(name: str, severity: int) -> None:
    images, index = some_images(), 3 * torch.arange(N)
    expected = run(images, name, severity, index)
    parts = zip(images.split([1, 2, 67]), index.split([1, 2, 67]), strict=True)
    assert torch.equal(torch.cat([run(part, name, severity, at) for part, at in parts]), expected)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    assert torch.equal(run(images[order], name, severity, index[order]), expected[order])


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, N), max_size=3), order=st.permutations(range(N)))
@pytest.mark.parametrize("name", ["gaussian_noise", "glass_blur", "fog"])
def test_any_order_and_split_give_the_same_pixels(name: str, cuts: list[int], order: list[int]) -> None:
    images = some_images()
    expected = run(images, name)
    shuffled = torch.tensor(order)
    edges = [0, *sorted(cuts), N]
    for start, end in itertools.pairwise(edges):
        chosen = shuffled[start:end]
        assert torch.equal(run(images[chosen], name, index=chosen), expected[chosen])


@every_corruption
@pytest.mark.parametrize(
    "layout",
    [
        lambda images: images.contiguous(memory_format=torch.channels_last),
        lambda images: images.repeat_interleave(2, dim=0)[::2],
        lambda images: images.transpose(2, 3).contiguous().transpose(2, 3),
    ],
    ids=["channels_last", "every other image", "columns first"],
)
def test_pixels_do_not_depend_on_the_memory_format(name: str, layout: Callable[[Tensor], Tensor]) -> None:
    images = some_images(9)
    assert torch.equal(run(layout(images), name), run(images, name))


@every_corruption
@both_ends
def test_torchs_own_random_state_is_neither_used_nor_touched(name: str, severity: int) -> None:
    images = some_images(5)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = torch.get_rng_state()
        expected = run(images, name, severity)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert torch.equal(run(images, name, severity), expected)


@every_corruption
@both_ends
def test_another_seed_or_index_gives_other_pixels_where_there_is_chance(name: str, severity: int) -> None:
    images, index = some_images(20), torch.arange(20)
    expected = run(images, name, severity)
    others = [
        run(images, name, severity, index, seed=1),
        run(images, name, severity, index, seed=-(2**70)),
        run(images, name, severity, index + 20),
        run(images, name, severity, index + 2**32),
    ]
    for other in others:
        assert torch.equal(other, expected) == (name in DETERMINISTIC)


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in DETERMINISTIC])
def test_copies_of_an_image_are_corrupted_each_in_its_own_way(name: str) -> None:
    copies = some_images(1).expand(20, -1, -1, -1)
    assert len(run(copies, name).unique(dim=0)) > 10  # two angles may be too close to tell


@every_corruption
def test_the_same_index_draws_the_same_whatever_the_image(name: str) -> None:
    images = some_images(2)
    twice = torch.cat((images[:1], images[:1]))
    first, second = run(twice, name, index=torch.tensor([7, 7]))
    assert torch.equal(first, second)


@every_corruption
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_images_stay_uint8_of_their_shape_and_change(name: str, severity: int) -> None:
    images = some_images(8)
    before = images.clone()
    out = run(images, name, severity)
    assert (out.dtype, out.shape, out.device) == (torch.uint8, images.shape, images.device)
    assert torch.equal(images, before)
    assert not torch.equal(out, before)
    assert out.data_ptr() != images.data_ptr()


@every_corruption
def test_an_empty_batch_stays_empty(name: str) -> None:
    out = run(torch.empty(0, 3, 32, 32, dtype=torch.uint8), name)
    assert (out.dtype, tuple(out.shape)) == (torch.uint8, (0, 3, 32, 32))


@every_corruption
def test_pixels_do_not_depend_on_the_default_dtype(name: str, default_dtype: Callable[[torch.dtype], None]) -> None:
    images = some_images(20)
    expected = [run(images, name, severity) for severity in (1, 3, 4)]
    for dtype in (torch.float64, torch.bfloat16):
        default_dtype(dtype)
        for severity, wanted in zip((1, 3, 4), expected, strict=True):
            assert torch.equal(run(images, name, severity), wanted)


@every_corruption
def test_pixels_do_not_depend_on_the_number_of_threads(name: str, two_threads: None) -> None:
    images = some_images(12)  # more values than torch gives to one thread
    with_two = run(images, name)
    torch.set_num_threads(1)
    assert torch.equal(with_two, run(images, name))


@every_corruption
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_callers_gradient_mode_changes_nothing(name: str, mode: Callable[[], AbstractContextManager[None]]) -> None:
    images = some_images(3)
    expected = run(images, name)
    poisson_table.cache_clear()
    frost_photographs.cache_clear()
    with mode():
        assert torch.equal(run(images, name), expected)
    assert torch.equal(run(images, name), expected)


@every_corruption
def test_seed_0_is_the_default(name: str) -> None:
    images, index = some_images(3), torch.arange(3)
    assert torch.equal(corrupt(images, name, 5, index=index), corrupt(images, name, 5, index=index, seed=0))


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "name",
    ["defocus_blur", "glass_blur", "zoom_blur", "motion_blur", "elastic_transform", "pixelate", "gaussian_blur"],
)
def test_what_moves_pixels_leaves_plain_images_plain(name: str, severity: int) -> None:
    """To within the level that a truncation can cost."""
    plain = plain_images()
    assert (run(plain, name, severity).int() - plain.int()).abs().max() <= 1


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["shot_noise", "speckle_noise", "fog", "contrast", "saturate"])
def test_black_stays_black_where_the_strength_is_in_proportion(name: str, severity: int) -> None:
    assert (run(plain_images()[:1], name, severity) == 0).all()


@pytest.mark.gpu
@every_corruption
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_the_gpu_gives_the_pixels_of_the_cpu(name: str, severity: int) -> None:
    images = some_images()
    expected = run(images, name, severity)
    out = run(images.cuda(), name, severity)
    assert out.device.type == "cuda"
    difference = (out.cpu().int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference == 0).double().mean() > 0.99


@pytest.mark.gpu
@every_corruption
def test_on_the_gpu_pixels_do_not_depend_on_the_batch_nor_on_the_indexs_device(name: str) -> None:
    images = some_images().cuda()
    expected = run(images, name)
    assert torch.equal(run(images[5:8], name, index=torch.arange(5, 8)), expected[5:8])
    assert torch.equal(run(images, name, index=torch.arange(N).cuda()), expected)

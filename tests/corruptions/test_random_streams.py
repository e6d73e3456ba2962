"""The generator against its authors' known answers, and the draws against the distributions that they promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from helpers.errors import raises_naming
from tta.corruptions import corrupt
from tta.corruptions.noise import impulse_noise, poisson_table, shot_noise
from tta.corruptions.rng import Draw, make_key, philox

# (counter, key, answer) of Philox-4x32-10, from the known-answer tests of Random123.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
# With fixed seeds a test passes or fails for good; a sound generator would fail one in a thousand of such tests.
LIKELY = 1e-3


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def tensors(numbers: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b, c, d = (torch.tensor([number]) for number in numbers)
    return a, b, c, d


def make_draw(n: int = 50, seed: int = 0, first: int = 0) -> Draw:
    return Draw(make_key(seed, "fog", 3), torch.arange(first, first + n))


def correlation(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1])


def test_philox__gives_the_known_answers() -> None:
    for counter, key, answer in KNOWN:
        k0, k1 = words(key)
        assert [int(word) for word in philox(tensors(words(counter)), (k0, k1))] == words(answer)


def test_philox__gives_numpy_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    counter = [torch.randint(0, 2**32, shape, generator=generator) for shape in ((1, 9), (1, 1), (5, 1), (5, 1))]
    found = philox(tuple(word.numpy() for word in counter), (3, 2**32 - 1))
    for ours, expected in zip(found, philox(tuple(counter), (3, 2**32 - 1)), strict=True):
        assert np.array_equal(ours, expected.numpy())


def test_philox__encrypts_each_counter_by_itself() -> None:
    columns = [torch.tensor(column) for column in zip(*(words(counter) for counter, *_ in KNOWN), strict=True)]
    a, b, c, d = (column[:, None].expand(3, 5) for column in columns)
    batch = philox((a, b, c, d), (1, 2))
    for row, (counter, *_) in enumerate(KNOWN):
        alone = philox(tensors(words(counter)), (1, 2))
        for together, single in zip(batch, alone, strict=True):
            assert (together[row] == single).all()


def test_key__no_two_settings_share_one() -> None:
    seeds = [0, 1, -1, 10, 2**32, 2**64 + 1, -(2**40)]
    settings = list(itertools.product(seeds, ["fog", "snow", "1/fog"], range(1, 6)))
    keys = [make_key(*setting) for setting in settings]
    assert len(set(keys)) == len(settings)
    assert all(0 <= word < 2**32 for key in keys for word in key)


def test_key__of_a_setting_is_fixed() -> None:
    """Published numbers depend on it."""
    assert make_key(0, "fog", 3) == (0x947B66DE, 0x5A1102E2)  # SHA-256 of 0/fog/3 begins with de667b94 e202115a


def test_draws__have_the_shape_asked_for() -> None:
    draw = make_draw(6)
    for shape in ((), (3,), (2, 4, 4)):
        for drawn, dtype in (
            (draw.uniform(*shape), torch.float64),
            (draw.normal(*shape), torch.float64),
            (draw.integers(0, 3, *shape), torch.int64),
        ):
            assert drawn.shape == (6, *shape)
            assert drawn.dtype == dtype


def test_uniform__is_uniform() -> None:
    u = make_draw(200).uniform(1000).flatten().numpy()
    assert u.min() > 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > LIKELY


def test_normal__is_normal() -> None:
    z = make_draw(200).normal(1000).flatten().numpy()
    assert np.isfinite(z).all()
    assert stats.kstest(z, "norm").pvalue > LIKELY
    assert np.abs(z).max() > 4
    assert stats.kstest(np.square(z).reshape(-1, 4).sum(1), stats.chi2(4).cdf).pvalue > LIKELY


def test_normal__every_place_is_normal() -> None:
    """Over the images, that is: the two of a Box-Muller pair included."""
    for shape in ((), (2,), (3, 32, 32)):
        z = make_draw(1000).normal(*shape).reshape(1000, -1)
        for place in {0, z.shape[1] // 2, z.shape[1] - 1}:
            assert stats.kstest(z[:, place].numpy(), "norm").pvalue > LIKELY, f"place {place} of {shape}"


def test_integers__are_uniform_below_their_end() -> None:
    for low, high in ((-1, 1), (0, 5), (-3, 4)):
        drawn = make_draw(100).integers(low, high, 200).flatten().numpy()
        values, counts = np.unique(drawn, return_counts=True)
        assert values.tolist() == list(range(low, high))
        assert stats.chisquare(counts).pvalue > LIKELY


def test_integers__take_an_end_for_each_image() -> None:
    ends = torch.tensor([[1, 10], [2, 20], [300, 3]])
    draw = Draw((1, 2), torch.tensor([5, 6, 7]))
    drawn = torch.stack([draw.integers(0, ends, 2) for _ in range(300)])
    assert (drawn >= 0).all()
    assert (drawn < ends).all()
    assert drawn.amax(0)[ends <= 20].tolist() == [0, 9, 1, 19, 2]
    assert int(drawn[:, 2, 0].max()) > 250


def test_calls__continue_the_streams() -> None:
    draw = make_draw()
    first, second = draw.uniform(400), draw.uniform(400)
    assert torch.equal(first, make_draw().uniform(400))
    assert abs(correlation(first, second)) < 4 / first.numel() ** 0.5


def test_prepare__gives_the_numbers_of_the_calls() -> None:
    prepared, plain = make_draw(6), make_draw(6)
    for draw in (prepared, plain):
        draw.uniform(2)
    prepared.prepare(5, 1, 12)
    for shape in ((5,), (), (3, 4), (7,)):  # the last one is not prepared
        assert torch.equal(prepared.uniform(*shape), plain.uniform(*shape))


def test_prepare__refuses_a_call_of_another_count() -> None:
    draw = make_draw()
    draw.prepare(8, 4)
    draw.uniform(2, 4)
    with raises_naming(RuntimeError, 4, 9):
        draw.uniform(9)


def test_draws__do_not_depend_on_the_threads() -> None:
    """From three on the words are torch's, else NumPy's."""
    before, drawn = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            draw = make_draw(6)
            draw.prepare(5, 1)
            drawn.append([draw.uniform(5), draw.uniform(), draw.integers(0, 9, 2, 3)])
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*drawn, strict=True):
        assert torch.equal(one, three)


@pytest.mark.parametrize(
    "other",
    [
        make_draw(first=50),
        make_draw(first=2**32),
        make_draw(seed=1),
        Draw(make_key(0, "fog", 4), torch.arange(50)),
        Draw(make_key(0, "snow", 3), torch.arange(50)),
    ],
    ids=["other images", "upper half of the index", "next seed", "next severity", "other corruption"],
)
def test_streams__are_not_correlated(other: Draw) -> None:
    mine, others = make_draw().uniform(400), other.uniform(400)
    assert abs(correlation(mine, others)) < 4 / mine.numel() ** 0.5
    assert len(torch.cat((mine, others)).unique()) > 1.9 * mine.numel()


def test_streams__values_are_not_correlated() -> None:
    u = make_draw().uniform(4, 500)
    for a, b in itertools.combinations(range(4), 2):
        assert abs(correlation(u[:, a], u[:, b])) < 4 / (50 * 500) ** 0.5
    assert abs(correlation(u[..., 1:], u[..., :-1])) < 4 / (50 * 4 * 499) ** 0.5


def test_streams__of_next_images_are_not_correlated() -> None:
    u = make_draw().uniform(2000)
    assert abs(correlation(u[1:], u[:-1])) < 4 / (49 * 2000) ** 0.5


def test_streams__stay_with_their_index() -> None:
    key, index = make_key(3, "fog", 1), torch.tensor([9, 2**40 + 1, 0, 9])
    together = Draw(key, index).uniform(7)
    for row, i in zip(together, index, strict=True):
        assert torch.equal(Draw(key, i[None]).uniform(7)[0], row)


def test_poisson_table__is_scipys() -> None:
    for photons in (50, 100, 500):
        table = poisson_table(photons).numpy()
        level = np.arange(256)[:, None]
        expected = stats.poisson.cdf(np.arange(table.shape[1]), level / 255 * photons)
        np.testing.assert_allclose(table - level, expected, atol=1e-12, err_msg=f"{photons} photons")
        assert (np.diff(table.ravel()) >= 0).all()
        assert (table[:, -1] == level[:, 0] + 1).all()


class Given(Draw):
    """Streams whose uniform numbers are given."""

    def __init__(self, uniforms: Tensor) -> None:
        super().__init__((0, 0), torch.arange(len(uniforms)))
        self.uniforms = uniforms

    def uniform(self, *shape: int) -> Tensor:
        return self.uniforms.view(-1, *shape)


@pytest.mark.parametrize("photons", [50, 500])
def test_shot_noise__inverts_scipys_poisson(photons: int) -> None:
    level = torch.arange(256).repeat(4).view(1, 1, 32, 32)
    u = torch.rand(1, 1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = shot_noise(level / 255, (photons,), Given(u)).double() * photons
    expected = stats.poisson.ppf(u.numpy(), level.numpy() / 255 * photons)
    np.testing.assert_allclose(counts.numpy(), np.maximum(expected, 0), rtol=1e-6)


@pytest.mark.parametrize("photons", [3, 60, 500])
def test_shot_noise__every_draw_finds_its_count(photons: int) -> None:
    """As a search does, also next to each step of the distribution function and at the ends of what can be drawn."""
    table = poisson_table(photons)
    rng, level = np.random.default_rng(0), np.arange(256)[:, None]
    steps = (table.numpy() - level)[:, rng.integers(0, table.shape[1], 20)]
    u = np.concatenate([rng.random((256, 20)), rng.random((256, 20)) ** 8, 1 - rng.random((256, 20)) ** 8, steps], 1)
    u = (np.floor(u * 2**32).clip(0, 2**32 - 1) + 0.5) * 2.0**-32
    u[:, :2] = 2.0**-33, 1 - 2.0**-33
    x = torch.from_numpy(np.broadcast_to(level / 255, u.shape).copy())[None, None]
    counts = shot_noise(x, (photons,), Given(torch.from_numpy(u)[None, None]))[0, 0] * photons
    expected = [np.searchsorted(row, at, side="right") for row, at in zip(table.numpy(), u + level, strict=True)]
    np.testing.assert_array_equal(counts.round().numpy(), expected)


def test_impulses__are_half_white_half_black() -> None:
    u = (torch.arange(1024, dtype=torch.float64) / 1024).view(1, 1, 32, 32)
    out = impulse_noise(torch.full_like(u, 0.3), (0.25,), Given(u)).flatten()
    torch.testing.assert_close(out, torch.tensor([1.0] * 128 + [0.0] * 128 + [0.3] * 768, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "severity", "seed"), [("speckle_noise", 1, 0), ("gaussian_noise", 2, 0), ("gaussian_noise", 1, 1)]
)
def test_corrupt__no_two_settings_share_their_noise(name: str, severity: int, seed: int) -> None:
    grey, index = torch.full((20, 3, 32, 32), 128, dtype=torch.uint8), torch.arange(20)
    one = corrupt(grey, "gaussian_noise", 1, index=index).double()
    other = corrupt(grey, name, severity, index=index, seed=seed).double()
    assert abs(correlation(one, other)) < 4 / grey.numel() ** 0.5

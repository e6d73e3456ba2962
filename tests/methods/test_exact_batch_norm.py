"""BatchNorm with the statistics of the current batch, against float64."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from helpers.plain import moments
from tta.methods.common.batch_norm import use_batch_stats
from tta.methods.common.exact_batch_norm import BatchStatsNorm, batch_norm, statistics_by_column


def some(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Channels-last values that are far from zero, as a sum of many of them suffers from."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) + 3).contiguous(memory_format=torch.channels_last)


def by_formula(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """In float64, channel by channel."""
    x = x.double()
    mean, var = moments(x, False)
    spread = (1, -1, 1, 1)
    return (x - mean.view(spread)) / (var.view(spread) + eps).sqrt() * weight.view(spread) + bias.view(spread)


def error(given: Tensor, expected: Tensor) -> float:
    return float((given.double() - expected).norm() / expected.norm())


@settings(deadline=None, max_examples=20)
@given(
    n=st.integers(2, 5),
    channels=st.integers(1, 6),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_statistics__follow_the_formula(n: int, channels: int, height: int, width: int, seed: int) -> None:
    x = some((n, channels, height, width), seed)
    mean, var = statistics_by_column(x)
    expected_mean, expected_var = moments(x.double(), False)
    torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var.double(), expected_var, rtol=1e-5, atol=1e-6)


def test_batch_norm__many_pixels_are_exact() -> None:
    """In channels-last format as in the usual one."""
    x = some((16, 8, 112, 112))
    weight, bias = torch.rand(8) + 0.5, torch.randn(8)
    expected = by_formula(x, weight, bias, 1e-5)
    assert error(batch_norm(x.contiguous(), weight, bias, 1e-5), expected) < 1e-6
    assert error(batch_norm(x, weight, bias, 1e-5), expected) < 1e-6


def test_batch_norm__gradients_are_those_of_float64() -> None:
    x, weight, bias = some((8, 4, 50, 50)), torch.rand(4) + 0.5, torch.randn(4)
    pull = some((8, 4, 50, 50), seed=1) - 3
    inputs, exact = (x, weight, bias), (x.double(), weight.double(), bias.double())
    for value in (*inputs, *exact):
        value.requires_grad_()
    ours = torch.autograd.grad(batch_norm(x, weight, bias, 1e-5), inputs, pull)
    expected = torch.autograd.grad(by_formula(*exact, 1e-5), exact, pull.double())
    for value, right in zip(ours, expected, strict=True):
        assert error(value, right) < 1e-5


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, True)])
def test_batch_norm__gives_wanted_gradients_alone(wanted: tuple[bool, bool, bool]) -> None:
    x, weight, bias = inputs = some((8, 4, 50, 50)), torch.ones(4), torch.zeros(4)
    for value, ask in zip(inputs, wanted, strict=True):
        value.requires_grad_(ask)
    batch_norm(x, weight, bias, 1e-5).square().mean().backward()
    assert tuple(value.grad is not None for value in inputs) == wanted


def test_batch_norm__without_scale_and_shift() -> None:
    x = some((8, 4, 50, 50)).requires_grad_()
    y = batch_norm(x, None, None, 1e-5)
    y.square().sum().backward()
    assert error(y.detach(), by_formula(x.detach(), torch.ones(4), torch.zeros(4), 1e-5)) < 1e-6
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_batch_norm__other_types_are_torchs_own(dtype: torch.dtype) -> None:
    x = some((8, 4, 50, 50)).to(dtype)
    expected = nn.functional.batch_norm(x, None, None, training=True)
    assert torch.equal(batch_norm(x, None, None, 1e-5), expected)


def test_drop__timms_activation_is_applied() -> None:
    layer = BatchNormAct2d(4, act_layer=nn.ReLU).eval()
    net = nn.Sequential(copy.deepcopy(layer))
    assert use_batch_stats(net)
    x = some((8, 4, 50, 50))
    torch.testing.assert_close(net(x), layer.train()(x.contiguous()))


def test_drop__a_layer_in_two_places_stays_one() -> None:
    layer = nn.BatchNorm2d(4)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    assert use_batch_stats(net)
    assert isinstance(net[0], BatchStatsNorm)
    assert net[0] is net[2]


def test_drop__own_layers_go_on_by_themselves() -> None:
    class Doubling(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    net = nn.Sequential(Doubling(4)).eval()
    assert use_batch_stats(net)
    x = some((8, 4, 5, 5))
    torch.testing.assert_close(net(x), 2 * nn.functional.batch_norm(x, None, None, training=True))


def test_batch_norm__a_networks_logits_are_exact() -> None:
    """With torch's running sums over all pixels, the error is eight times as large."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model("efficientnet_lite0", num_classes=50).eval()
    use_batch_stats(net)
    images = torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = copy.deepcopy(net).double()(images.double())
        logits = net.to(memory_format=torch.channels_last)(images)
    assert float((logits - expected).abs().max() / expected.abs().max()) < 3e-5

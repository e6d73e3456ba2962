"""BatchNorm with a mixture of running and batch statistics, against formulas and torch's own layers."""

from __future__ import annotations

import copy
import functools
import itertools

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from helpers.backbones import small_net
from helpers.errors import raises_naming
from helpers.plain import moments
from tta.methods.common.batch_norm import BlendedBatchNorm, blend_statistics
from tta.methods.common.parameters import norm_parameters

SHAPES = [(6, 4), (6, 4, 5), (3, 4, 5, 2)]


def some(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1


def filled(layer: _BatchNorm) -> _BatchNorm:
    """The layer in float64, with numbers in it that are no layer's first ones."""
    with torch.no_grad():
        for i, tensor in enumerate(layer.state_dict().values()):
            if tensor.is_floating_point():
                tensor.copy_(some(tuple(tensor.shape), seed=i + 10).abs())
    return layer.double().eval()


def a_layer(dims: int, **kwargs: bool) -> _BatchNorm:
    return filled((nn.BatchNorm2d if dims == 4 else nn.BatchNorm1d)(4, **kwargs))


@pytest.mark.parametrize("shape", SHAPES)
def test_mixed__normalises_by_the_formula(shape: tuple[int, ...]) -> None:
    layer = a_layer(len(shape))
    x = some(shape)
    state = layer.state_dict()
    for share, unbiased in itertools.product((0.0, 0.3, 1.0), (False, True)):
        mean, var = moments(x, unbiased)
        mean = (1 - share) * state["running_mean"] + share * mean
        var = (1 - share) * state["running_var"] + share * var
        expected = torch.empty_like(x)
        for c in range(4):
            expected[:, c] = (x[:, c] - mean[c]) / (var[c] + 1e-5).sqrt() * state["weight"][c] + state["bias"][c]
        given = BlendedBatchNorm(layer, share, unbiased=unbiased)(x)
        torch.testing.assert_close(given, expected, rtol=1e-12, atol=1e-12)
    # With no share it is torch's layer in eval mode, with all of it the one in training.
    torch.testing.assert_close(BlendedBatchNorm(layer, 0)(x), layer(x))
    torch.testing.assert_close(BlendedBatchNorm(layer, 1)(x), copy.deepcopy(layer).train()(x))


def test_mixed__without_scale_and_shift() -> None:
    layer = a_layer(4, affine=False)
    torch.testing.assert_close(BlendedBatchNorm(layer, 0)(some((3, 4, 5, 2))), layer(some((3, 4, 5, 2))))


def test_mixed__tracks_statistics_as_torch() -> None:
    layer = a_layer(4)
    twin = copy.deepcopy(layer).train()
    twin.momentum = 0.3
    mixed = BlendedBatchNorm(layer, 0.3, track=True, unbiased=True)
    for seed in range(3):
        x = some((3, 4, 5, 2), seed).requires_grad_()
        output = mixed(x)
        twin(x)
        torch.testing.assert_close(mixed.running_mean, twin.running_mean)
        torch.testing.assert_close(mixed.running_var, twin.running_var)
        assert not mixed.running_mean.requires_grad
        assert not mixed.running_var.requires_grad
        # The batch is in the statistics before it is normalised with them.
        torch.testing.assert_close(output, copy.deepcopy(twin).eval()(x))


def test_mixed__statistics_stay_unless_tracked() -> None:
    layer = a_layer(4)
    mixed = BlendedBatchNorm(layer, 0.3)
    first = mixed(some((3, 4, 5, 2)))
    mixed(some((3, 4, 5, 2), seed=1))
    assert torch.equal(mixed(some((3, 4, 5, 2))), first)
    assert torch.equal(mixed.running_mean, layer.state_dict()["running_mean"])


def test_mixed__replaced_layer_keeps_its_statistics() -> None:
    layer = a_layer(4)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    BlendedBatchNorm(layer, 0.3, track=True)(some((3, 4, 5, 2)))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize(("track", "unbiased"), [(False, False), (True, True)])
def test_mixed__gradient_flows_through_the_batch(track: bool, unbiased: bool) -> None:
    layer = a_layer(4)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        mixed = BlendedBatchNorm(layer, 0.3, track, unbiased)  # a fresh one: tracking would change the function
        return torch.func.functional_call(mixed, {"weight": weight, "bias": bias}, x)

    inputs = (some((3, 4, 2, 2)), some((4,), 1), some((4,), 2))
    assert torch.autograd.gradcheck(function, tuple(tensor.requires_grad_() for tensor in inputs))


def test_mixed__applies_what_timms_layer_holds() -> None:
    class Triple(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * x

    layer = filled(BatchNormAct2d(4, act_layer=nn.GELU, inplace=False, drop_layer=Triple))
    x = some((3, 4, 5, 2))
    expected = layer(x)
    torch.testing.assert_close(BlendedBatchNorm(layer, 0)(x), expected)
    plain = a_layer(4)
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(expected, nn.functional.gelu(3 * plain(x)))


def test_mixed__gradient_through_activation_in_place() -> None:
    layer = filled(BatchNormAct2d(4, act_layer=nn.ReLU, inplace=True))
    x = some((3, 4, 2, 2)).requires_grad_()
    assert torch.autograd.gradcheck(BlendedBatchNorm(layer, 0.3), (x,))


def test_mixed__dropout_of_timms_layer_stays_off() -> None:
    layer = filled(BatchNormAct2d(4, drop_layer=functools.partial(nn.Dropout, p=0.5)))
    net = nn.Sequential(layer)
    blend_statistics(net, 0.3)
    assert torch.equal(net(some((3, 4, 5, 2))), net(some((3, 4, 5, 2))))


def test_mixed__low_precision_is_computed_in_full() -> None:
    layer = a_layer(4).float()
    mixed = BlendedBatchNorm(layer, 0.3)
    x = some((3, 4, 5, 2)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        output = mixed(x)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, mixed(x.float()).bfloat16())


def test_mix__refuses_layers_without_statistics() -> None:
    net = nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False))
    with raises_naming(ValueError, "BatchNorm"):
        blend_statistics(net, 0.1)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_mix__refuses_other_shares(share: float) -> None:
    with raises_naming(ValueError, "share", "[0, 1]", share):
        blend_statistics(small_net("batch"), share)


@pytest.mark.parametrize("name", ["small", "test_efficientnet", "activations with parameters"])
def test_mix__replaces_layers_and_keeps_parameters(name: str) -> None:
    import timm

    if name == "small":
        net: nn.Module = small_net("batch")
    elif name == "activations with parameters":
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(BatchNormAct2d(4, act_layer=nn.PReLU)))
    else:
        net = timm.create_model(name, num_classes=5)
    parameters = dict(net.named_parameters())
    norms = {key for key in norm_parameters(net) if ".act." not in key}
    blend_statistics(net, 0.1)
    assert not any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in net.modules())
    assert {key: id(p) for key, p in net.named_parameters()} == {key: id(p) for key, p in parameters.items()}
    assert set(norm_parameters(net)) == norms


def test_mix__leaves_other_layers_alone() -> None:
    for kind in ("group", "layer", "none"):
        net = small_net(kind)
        before = list(net.modules())
        blend_statistics(net, 0.1)
        assert list(net.modules()) == before

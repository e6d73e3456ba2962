"""Running statistics that follow the batches, against the formula written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers.backbones import small_net, some_images
from helpers.plain import Moments, classify, mixed, moments, running_of, weights_of
from tta.methods import BNEma, Source


class PlainEma:
    """The recursion with its state in a dictionary."""

    def __init__(self, share: float, official_quirks: bool) -> None:
        net = small_net("batch").double()
        self.weights, self.running = weights_of(net), running_of(net)
        self.share, self.official = share, official_quirks

    def step(self, images: Tensor) -> Tensor:
        def follow_and_use(layer: str, h: Tensor) -> Moments:
            self.running[layer] = mixed(self.running, self.share, unbiased=self.official)(layer, h)
            # The official code's first pass normalises by the batch alone, and so shows deeper layers other inputs.
            return moments(h) if self.official else self.running[layer]

        logits = classify(self.weights, images, follow_and_use)
        return classify(self.weights, images, lambda layer, _: self.running[layer]) if self.official else logits


@pytest.mark.parametrize("official_quirks", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
def test_follows_the_plain_formula_for_several_batches(share: float, official_quirks: bool) -> None:
    method = BNEma(small_net("batch").double(), share, official_quirks)
    plain = PlainEma(share, official_quirks)
    for seed, size in enumerate((8, 1, 3, 8, 8)):
        images = some_images(size, seed).double()
        torch.testing.assert_close(method(images), plain.step(images), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(running_of(method.backbone), plain.running, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("official_quirks", [False, True])
def test_reset_restores_the_source_statistics(official_quirks: bool) -> None:
    net = small_net("batch")
    method = BNEma(net, official_quirks=official_quirks)
    layer = method.backbone.get_submodule("body.1")
    source = net.get_submodule("body.1").state_dict()
    method(some_images())
    assert not torch.equal(layer.state_dict()["running_mean"], source["running_mean"])
    method.reset()
    for key in ("running_mean", "running_var"):
        assert torch.equal(layer.state_dict()[key], source[key])


def test_both_ways_differ() -> None:
    net, images = small_net("batch"), some_images()
    assert not torch.allclose(BNEma(net)(images), BNEma(net, official_quirks=True)(images))


@pytest.mark.parametrize("official_quirks", [False, True])
def test_without_batchnorm_it_is_source(official_quirks: bool) -> None:
    for kind in ("layer", "group"):
        net = small_net(kind)
        method = BNEma(net, official_quirks=official_quirks)
        assert torch.equal(method(some_images(1)), Source(net)(some_images(1)))


@pytest.mark.parametrize("official_quirks", [False, True])
@pytest.mark.parametrize("share", [-0.1, 2])
def test_a_share_outside_0_to_1_says_so(share: float, official_quirks: bool) -> None:
    with pytest.raises(ValueError, match=rf"must be in \[0, 1\], got {share}"):
        BNEma(small_net("batch"), share, official_quirks)


@pytest.mark.parametrize("official_quirks", [False, True])
def test_a_layer_without_running_statistics_says_so(official_quirks: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())
    with pytest.raises(ValueError, match="a BatchNorm layer of the backbone has no running statistics to mix with"):
        BNEma(net, official_quirks=official_quirks)


def test_the_official_way_has_dropout_off_too() -> None:
    net = small_net("batch").train()
    assert torch.equal(BNEma(net, official_quirks=True)(some_images()), BNEma(net, official_quirks=True)(some_images()))

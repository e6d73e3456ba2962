"""Running statistics that follow the batches, against the formula written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers.backbones import small_net, some_images
from helpers.errors import raises_naming
from helpers.plain import Moments, classify, mixed, moments, running_of, weights_of
from tta.methods import BNEma, Source

both_ways = pytest.mark.parametrize("official_quirks", [False, True])


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


@both_ways
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_bn_ema__follows_plain_formula(share: float, official_quirks: bool) -> None:
    method = BNEma(small_net("batch").double(), share, official_quirks)
    plain = PlainEma(share, official_quirks)
    first = method(some_images().double())
    torch.testing.assert_close(first, plain.step(some_images().double()), rtol=1e-6, atol=1e-9)
    for seed, size in enumerate((1, 3, 8, 8), start=1):
        images = some_images(size, seed).double()
        torch.testing.assert_close(method(images), plain.step(images), rtol=1e-6, atol=1e-9)
    method.reset()
    assert torch.equal(method(some_images().double()), first)


@both_ways
def test_bn_ema__is_source_without_batchnorm(official_quirks: bool) -> None:
    net = small_net("layer")
    method = BNEma(net, official_quirks=official_quirks)
    torch.testing.assert_close(method(some_images(1)), Source(net)(some_images(1)))


@both_ways
def test_bn_ema__refuses_what_it_cannot_mix(official_quirks: bool) -> None:
    for share in (-0.1, 2):
        with raises_naming(ValueError, "share", share):
            BNEma(small_net("batch"), share, official_quirks)
    untracked = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())
    with raises_naming(ValueError, "BatchNorm"):
        BNEma(untracked, official_quirks=official_quirks)


def test_bn_ema__official_way_has_dropout_off_too() -> None:
    net = small_net("batch").train()
    assert torch.equal(BNEma(net, official_quirks=True)(some_images()), BNEma(net, official_quirks=True)(some_images()))

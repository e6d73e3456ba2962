"""A mixture of source and batch statistics, against the formula written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.backbones import small_net, some_images
from helpers.errors import raises_naming
from helpers.plain import classify, mixed, running_of, weights_of
from tta.methods import BNAdapt, BNAlpha, Source


def plain_logits(images: Tensor, share: float, unbiased: bool = False) -> Tensor:
    net = small_net("batch").double()
    return classify(weights_of(net), images, mixed(running_of(net), share, unbiased))


@pytest.mark.parametrize(("share", "official_quirks"), [(0.1, False), (0.7, True)])
def test_bn_alpha__follows_plain_formula(share: float, official_quirks: bool) -> None:
    method = BNAlpha(small_net("batch").double(), share, official_quirks=official_quirks)
    for seed, size in enumerate((8, 1, 3, 8)):
        images = some_images(size, seed).double()
        expected = plain_logits(images, share, unbiased=official_quirks)
        torch.testing.assert_close(method(images), expected, rtol=1e-6, atol=1e-9)


def test_bn_alpha__prior_counts_as_so_many_images() -> None:
    for prior in (0.5, 16):
        method = BNAlpha(small_net("batch").double(), prior=prior)
        for seed, size in enumerate((8, 1, 3)):
            images = some_images(size, seed).double()
            expected = plain_logits(images, size / (prior + size))
            torch.testing.assert_close(method(images), expected, rtol=1e-6, atol=1e-9)


def test_bn_alpha__extremes_are_source_and_bn_adapt() -> None:
    net, images = small_net("batch").double(), some_images().double()
    torch.testing.assert_close(BNAlpha(net, share=0)(images), Source(net)(images))
    adapted = BNAdapt(net)(images)
    torch.testing.assert_close(BNAlpha(net, share=1)(images), adapted)
    torch.testing.assert_close(BNAlpha(net, prior=0)(images), adapted)
    # The official code's variance is the unbiased one.
    assert not torch.allclose(BNAlpha(net, share=1, official_quirks=True)(images), adapted)


def test_bn_alpha__is_source_without_batchnorm() -> None:
    net = small_net("layer")
    torch.testing.assert_close(BNAlpha(net)(some_images(1)), Source(net)(some_images(1)))


def test_bn_alpha__learns_nothing() -> None:
    method = BNAlpha(small_net("batch"))
    first = method(some_images())
    method(some_images(seed=1))
    assert torch.equal(method(some_images()), first)


@pytest.mark.parametrize("options", [{"share": -0.1}, {"share": 2}, {"prior": -1}, {"prior": "many"}], ids=str)
def test_bn_alpha__refuses_values_out_of_range(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with raises_naming(ValueError, name, value):
        BNAlpha(small_net("batch"), **options)

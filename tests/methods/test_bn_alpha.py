"""A mixture of source and batch statistics, against the formula written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.backbones import small_net, some_images
from helpers.plain import classify, mixed, running_of, weights_of
from tta.methods import BNAdapt, BNAlpha, Source


def plain_logits(images: Tensor, share: float, unbiased: bool = False) -> Tensor:
    net = small_net("batch").double()
    return classify(weights_of(net), images, mixed(running_of(net), share, unbiased))


@pytest.mark.parametrize("official_quirks", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.7, 1.0])
def test_follows_the_plain_formula_for_several_batches(share: float, official_quirks: bool) -> None:
    method = BNAlpha(small_net("batch").double(), share, official_quirks=official_quirks)
    for seed, size in enumerate((8, 1, 3, 8)):
        images = some_images(size, seed).double()
        expected = plain_logits(images, share, unbiased=official_quirks)
        torch.testing.assert_close(method(images), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("prior", [0, 0.5, 16])
def test_a_prior_weighs_the_source_as_so_many_images(prior: float) -> None:
    method = BNAlpha(small_net("batch").double(), prior=prior)
    for seed, size in enumerate((8, 1, 3)):
        images = some_images(size, seed).double()
        expected = plain_logits(images, size / (prior + size))
        torch.testing.assert_close(method(images), expected, rtol=1e-6, atol=1e-9)


def test_all_of_the_batch_is_bn_adapt_but_in_the_official_code() -> None:
    net, images = small_net("batch").double(), some_images().double()
    expected = BNAdapt(net)(images)
    torch.testing.assert_close(BNAlpha(net, share=1)(images), expected)
    torch.testing.assert_close(BNAlpha(net, prior=0)(images), expected)
    assert not torch.allclose(BNAlpha(net, share=1, official_quirks=True)(images), expected)


def test_none_of_the_batch_is_source() -> None:
    net, images = small_net("batch").double(), some_images().double()
    torch.testing.assert_close(BNAlpha(net, share=0)(images), Source(net)(images))


def test_without_batchnorm_it_is_source() -> None:
    for kind in ("layer", "group"):
        net = small_net(kind)
        assert torch.equal(BNAlpha(net)(some_images(1)), Source(net)(some_images(1)))


def test_nothing_is_learnt() -> None:
    method = BNAlpha(small_net("batch"))
    first = method(some_images())
    method(some_images(seed=1))
    assert torch.equal(method(some_images()), first)
    assert not any(p.requires_grad for p in method.parameters())


@pytest.mark.parametrize("share", [-0.1, 2])
def test_a_share_outside_0_to_1_says_so(share: float) -> None:
    with pytest.raises(ValueError, match=rf"must be in \[0, 1\], got {share}"):
        BNAlpha(small_net("batch"), share)


@pytest.mark.parametrize("prior", [-1, "many", float("nan")])
def test_a_prior_below_0_says_so(prior: Any) -> None:
    with pytest.raises(ValueError, match=f"method.prior must be a number of at least 0, got {prior!r}"):
        BNAlpha(small_net("batch"), prior=prior)

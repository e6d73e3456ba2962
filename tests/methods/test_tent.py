"""Tent against its formulas in float64, with autograd on them."""

from __future__ import annotations

import functools

import pytest
import torch

from helpers.backbones import SmallNet, small_net, varied_images
from helpers.plain import NORM, PlainAdaDEM, PlainSGD, assert_adapted, classify, entropy, weights_of
from tta.methods import BNAdapt, Tent
from tta.objectives import EM, AdaDEM

sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)


class PlainTent:
    """Steps of SGD on the batch mean of an objective; the last prediction before its update."""

    def __init__(self, net: SmallNet, adadem: bool, steps: int) -> None:
        self.optimizer = PlainSGD(weights_of(net), NORM, 0.05, 0.9)
        self.objective = PlainAdaDEM() if adadem else entropy
        self.steps = steps

    def step(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.steps):
            leaves = self.optimizer.leaves()
            z = classify(leaves, x)
            self.loss = self.objective(z).mean()
            self.optimizer.step(self.loss, leaves)
        return z.detach()


@pytest.mark.parametrize(("adadem", "steps"), [(False, 1), (False, 2), (True, 1)])
def test_tent__follows_plain_formulas(adadem: bool, steps: int) -> None:
    net = small_net("batch").double()
    method = Tent(net, AdaDEM() if adadem else EM(), sgd, steps=steps)
    plain = PlainTent(net, adadem, steps)
    for seed in range(4):
        images = varied_images(seed=seed).double()
        torch.testing.assert_close(method(images), plain.step(images), rtol=1e-6, atol=1e-9)
        assert_adapted(method, plain.optimizer.weights)
        torch.testing.assert_close(method.diagnostics["loss"], plain.loss.detach())
        assert method.diagnostics["used"] == 8


def test_tent__makes_predictions_surer() -> None:
    net = small_net("batch")
    tent = Tent(net, EM(), sgd)
    first, *_, last = (tent(varied_images()) for _ in range(10))
    torch.testing.assert_close(first, BNAdapt(net)(varied_images()))
    assert entropy(last).mean() < 0.9 * entropy(first).mean()


def test_tent__objective_is_its_own_and_reset() -> None:
    shared = AdaDEM()
    one, other = Tent(small_net("batch"), shared, sgd), Tent(small_net("batch"), shared, sgd)
    expected = [one(varied_images(seed=seed)) for seed in range(3)]
    found = [other(varied_images(seed=seed)) for seed in range(3)]
    one.reset()
    again = [one(varied_images(seed=seed)) for seed in range(3)]
    for logits in zip(expected, found, again, strict=True):
        assert torch.equal(logits[0], logits[1])
        assert torch.equal(logits[0], logits[2])

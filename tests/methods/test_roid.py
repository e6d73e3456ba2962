"""ROID against its paper, recomputed by another route, and what is easy to get wrong in it."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers.backbones import SmallNet, small_net, some_images
from helpers.errors import raises_naming
from helpers.given_logits import GivenLogits, images_of_logits
from helpers.plain import NORM, PlainSGD, adapted_of, assert_adapted, classify, moved, soft, weights_of
from tta.methods import ROID, BNAdapt
from tta.methods.common.augment import augment

sgd = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def spread(values: list[float]) -> list[float]:
    """Scale to [0, 1]; values within 1e-4 of one another are equal."""
    extent = max(values) - min(values)
    return [(v - min(values)) / extent if extent >= 1e-4 else 0.0 for v in values]


def plain_weights(p: list[list[float]], mean: list[float], temperature: float) -> list[float]:
    """Weight of each prediction, 0 for those that are dropped."""
    diversity = spread([1 - dot(mean, row) / math.sqrt(dot(mean, mean) * dot(row, row)) for row in p])
    certainty = spread([sum(v * math.log(v) for v in row) for row in p])
    least = sum(diversity) / len(diversity)
    return [0.0 if d < least else math.exp(d * c / temperature) for d, c in zip(diversity, certainty, strict=True)]


def plain_prior(p: Tensor) -> Tensor:
    n, c = p.shape
    prior = [sum(row[k] for row in p.tolist()) / n for k in range(c)]
    smooth = max(1 / n, 1 / c) / max(prior)
    return torch.tensor([(v + smooth) / (1 + smooth * c) for v in prior], dtype=p.dtype)


class PlainROID:
    """One step after another as the paper and the official code have them; only the augmentation is the method's."""

    def __init__(self, net: SmallNet, weighting: bool, consistency: bool, prior: str) -> None:
        self.source, self.weights = weights_of(net), weights_of(net)
        self.optimizer = PlainSGD(self.weights, NORM, 0.01, 0.9)
        self.weighting, self.consistency, self.prior = weighting, consistency, prior
        self.mean = [1 / 5] * 5
        self.draws = torch.Generator().manual_seed(7)
        self.kept: list[int] = []

    def step(self, x: Tensor) -> Tensor:
        leaves = self.optimizer.leaves()
        z = classify(leaves, x)
        p = soft(z)
        weights = plain_weights(p.tolist(), self.mean, 1 / 3) if self.weighting else [1.0] * len(x)
        self.mean = [0.9 * m + 0.1 * sum(row[c] for row in p.tolist()) / len(x) for c, m in enumerate(self.mean)]
        loss = torch.zeros((), dtype=x.dtype)
        for n, weight in enumerate(weights):
            for c in range(5):
                q = p[n, c].clamp(max=0.99)
                loss = loss - weight * q * (q / (1 - q) + 1e-5).log()
        kept = [n for n, weight in enumerate(weights) if weight > 0]
        self.kept.append(len(kept))
        if self.consistency:
            again = soft(classify(leaves, augment(x[kept], self.draws, padding="reflect")))
            for place, n in enumerate(kept):
                for c in range(5):
                    both = p[n, c] * again[place, c].log() + again[place, c] * p[n, c].log()
                    loss = loss - weights[n] * both / 2
        self.loss = (loss / len(x)).detach()
        self.optimizer.step(loss / len(x), leaves)
        for name in self.weights:
            self.weights[name] = 0.99 * self.weights[name] + 0.01 * self.source[name]
        with torch.no_grad():
            prior = plain_prior(p)
            if self.prior == "probabilities":
                return (z.exp() * prior).log()
            return z * prior if self.prior == "logits" else z


def roid(net: nn.Module, **kwargs: Any) -> ROID:
    return ROID(net, sgd, **{"seed": 7, **kwargs})


@pytest.mark.parametrize(
    ("weighting", "consistency", "prior"),
    [(True, True, "probabilities"), (True, False, "logits"), (False, True, "none")],
)
def test_roid__follows_plain_formulas(weighting: bool, consistency: bool, prior: str) -> None:
    net = small_net("batch").double()
    plain = PlainROID(net, weighting, consistency, prior)
    method = roid(
        net,
        weighting=weighting,
        consistency=consistency,
        prior_correction=prior != "none",
        official_quirks=prior == "logits",
    )
    for seed in range(5):
        images = some_images(seed=seed).double()
        torch.testing.assert_close(method(images), plain.step(images), rtol=1e-6, atol=1e-9)
        assert_adapted(method, plain.weights)
        torch.testing.assert_close(method.diagnostics["loss"], plain.loss, rtol=1e-6, atol=1e-9)
        assert method.diagnostics["used"] == plain.kept[-1]
    assert all(0 < kept < 8 for kept in plain.kept) == weighting


def test_roid__pulls_weights_to_source_after_update() -> None:
    net = small_net("batch")
    whole = roid(net, source_share=1.0)
    for seed in range(2):
        whole(some_images(seed=seed))
        assert not moved(whole, weights_of(net))
    half, none = roid(net, source_share=0.5), roid(net, source_share=0.0)
    for one in (half, none):
        one(some_images())
    weights = adapted_of(none)
    for name, source in weights_of(net).items():
        torch.testing.assert_close(adapted_of(half)[name], (weights[name] + source) / 2)


@pytest.mark.parametrize("n", [2, 7, 33])
def test_roid__identical_images_weigh_alike(n: int) -> None:
    """Kernels round the same image differently by its index in the batch."""
    method = roid(small_net("batch"))
    logits = method(some_images(1).expand(n, -1, -1, -1))
    assert logits.isfinite().all()
    assert method.diagnostics["loss"].isfinite()
    assert method.diagnostics["used"] == n


def test_roid__rounding_noise_does_not_weigh() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).double().repeat(64, 1)
    noise = 1e-6 * torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    weighing, even = (roid(GivenLogits(), weighting=weighting, consistency=False) for weighting in (True, False))
    for method in (weighing, even):
        method(images_of_logits(logits + noise))
        assert method.diagnostics["used"] == 64
    torch.testing.assert_close(weighing.diagnostics["loss"], even.diagnostics["loss"], rtol=1e-5, atol=0)


def test_roid__learns_from_one_image_without_batchnorm() -> None:
    method = roid(small_net("layer"))
    before = adapted_of(method)
    assert method(some_images(1)).isfinite().all()
    assert method.diagnostics["used"] == 1
    assert "body.1.weight" in moved(method, before)


def test_roid__lone_kept_image_passes_norm_of_vectors() -> None:
    """BatchNorm refuses a single value for each channel."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, 5))
    method = ROID(net, sgd)
    assert method(some_images(2)).isfinite().all()
    assert method.diagnostics["used"] == 1  # of two, the less diverse is dropped


def test_roid__corrects_between_updates_too() -> None:
    net, images = small_net("batch"), some_images(3)
    method = roid(net, window=4)
    for one in images[:2]:
        method(one[None])
    raw = BNAdapt(net)(images)
    corrected = (soft(raw) * plain_prior(soft(raw))).log()
    torch.testing.assert_close(method(images[2:]).softmax(1), corrected[2:].softmax(1))
    assert not moved(method, weights_of(net))


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(st.lists(st.floats(-30, 30, width=32), min_size=4, max_size=4), min_size=1, max_size=6))
def test_roid__keeps_some_sample_and_corrects_by_prior(rows: list[list[float]]) -> None:
    """Whatever the predictions are."""
    z = torch.tensor(rows, dtype=torch.float64)
    method = ROID(GivenLogits(), functools.partial(torch.optim.SGD, lr=0.0), consistency=False)
    prior = (method(images_of_logits(z)) - z).exp()[0]
    torch.testing.assert_close(prior, plain_prior(z.softmax(1)), rtol=1e-6, atol=1e-9)
    assert float(prior.sum()) == pytest.approx(1)
    often = z.softmax(1).mean(0)
    assert all(prior[a] >= prior[b] - 1e-9 for a in range(4) for b in range(4) if often[a] > often[b])
    assert 1 <= method.diagnostics["used"] <= len(rows)
    assert method.diagnostics["loss"].isfinite()


def test_roid__loss_is_divided_by_the_batchs_own_size() -> None:
    """The official code divides by the configured batch size, which differs for a last batch that is smaller."""
    net = small_net("layer").double()
    losses = []
    for n in (1, 3):
        method = roid(net, weighting=False, consistency=False)
        method(some_images(1).double().expand(n, -1, -1, -1))
        losses.append(method.diagnostics["loss"])
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize(
    "options", [{"seed": -1}, {"temperature": 0}, {"class_momentum": 2}, {"source_share": -0.1}], ids=str
)
def test_roid__refuses_values_out_of_range(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with raises_naming(ValueError, f"method.{name}", value):
        roid(small_net("batch"), **options)

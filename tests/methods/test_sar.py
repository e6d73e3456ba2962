"""SAR (arXiv:2302.12400) against its formulas, and what its official code does."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from helpers.backbones import CLASSES, SmallNet, small_net, some_images
from helpers.compositions import composed
from helpers.errors import raises_naming
from helpers.given_logits import UNSURE, A, B, GivenLogits, images_with
from helpers.plain import (
    NORM,
    PlainAdaDEM,
    PlainSGD,
    adapted_of,
    assert_adapted,
    classify,
    entropy,
    gradients,
    moved,
    weights_of,
)
from tta.methods import SAR
from tta.methods.common.parameters import NORM_BUT_LAST
from tta.models import Backbone
from tta.objectives import EM, AdaDEM, Objective

sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
LN_C = math.log(CLASSES)


class PlainSAR:
    """SAR on ``SmallNet("batch")``, with lists of the samples that each filter chooses."""

    def __init__(self, net: SmallNet, objective: Any, margin: float, rho: float, recovery: float, quirks: bool) -> None:
        self.w, self.start = weights_of(net), weights_of(net)
        self.fresh, self.objective = objective, objective()
        self.margin, self.rho, self.recovery, self.quirks = margin, rho, recovery, quirks
        self.optimizer = PlainSGD(self.w, NORM, 0.05, 0.9)
        self.average: float | None = None
        self.events: list[tuple[int, int, bool]] = []  # chosen by the first filter, by both, recovered
        self.late = 0  # chosen by the second filter alone

    def loss(self, z: Tensor, chosen: list[int]) -> Tensor:
        """Mean over the chosen samples, nothing if there are none."""
        return self.objective(z)[chosen].sum() / max(len(chosen), 1)

    def step(self, x: Tensor) -> Tensor:
        here = self.optimizer.leaves()
        z = classify(here, x)
        first = [n for n, h in enumerate(entropy(z).tolist()) if h < self.margin * LN_C]
        slope = gradients(self.loss(z, first), here, NORM)
        length = math.sqrt(sum(float(value) ** 2 for g in slope.values() for value in g))
        up = here | {
            name: (here[name] + self.rho * g / (length + 1e-12)).detach().requires_grad_() for name, g in slope.items()
        }
        z2 = classify(up, x)
        entropies = entropy(z2).tolist()
        second = [n for n, h in enumerate(entropies) if h < self.margin * LN_C]
        both = [n for n in first if n in second]
        self.late += len(second) - len(both)
        loss = self.loss(z2, both)
        self.value = loss.detach()
        if both or self.quirks:
            self.optimizer.step(loss, up)
        self.watch([entropies[n] for n in both])
        self.events.append((len(first), len(both), self.recovered))
        return z.detach()

    def watch(self, entropies: list[float]) -> None:
        if entropies:
            mean = sum(entropies) / len(entropies)
            self.average = mean if self.average is None else 0.9 * self.average + 0.1 * mean
        self.recovered = self.average is not None and self.average < self.recovery
        if self.recovered:
            self.w.update(self.start)
            self.objective = self.fresh()
            if not self.quirks:
                self.average, self.optimizer = None, PlainSGD(self.w, NORM, 0.05, 0.9)


EVENTS: dict[str, Callable[[list[tuple[int, int, bool]]], bool]] = {
    "some dropped by the first filter": lambda events: any(0 < first < 8 for first, _, _ in events),
    "some dropped by the second": lambda events: any(0 < both < first for first, both, _ in events),
    "all dropped by the first": lambda events: any(first == 0 for first, _, _ in events),
    "all dropped by the second": lambda events: any(both == 0 < first for first, both, _ in events),
    "recovered and then not": lambda events: any(a[2] and not b[2] for a, b in itertools.pairwise(events)),
    "recovered twice in a row": lambda events: any(a[2] and b[2] for a, b in itertools.pairwise(events)),
}
SETTINGS: dict[str, tuple[dict[str, Any], bool, set[str]]] = {
    "ours": ({"margin": 0.45, "rho": 0.05, "recovery": 0.65}, False, set(EVENTS)),
    "official": ({"margin": 0.45, "rho": 0.05, "recovery": 0.5}, True, set(EVENTS)),
    "far, and never recovers": ({"margin": 0.6, "rho": 0.3, "recovery": 0.0}, False, {"some dropped by the second"}),
}


def make(objective: Objective | None = None, optimizer: Any = sgd, **kwargs: Any) -> SAR:
    return SAR(small_net("batch").double(), objective or EM(), optimizer, **kwargs)


@pytest.fixture
def same_weights() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def images(seed: int = 0, n: int = 8) -> Tensor:
    return some_images(n, seed).double()


@pytest.mark.parametrize(
    ("setting", "adadem"), [("ours", True), ("official", False), ("official", True), ("far, and never recovers", False)]
)
def test_sar__follows_plain_formulas(setting: str, adadem: bool) -> None:
    kwargs, quirks, must_happen = SETTINGS[setting]
    method = make(AdaDEM() if adadem else EM(), official_quirks=quirks, **kwargs)
    objective = PlainAdaDEM if adadem else lambda: entropy
    reference = PlainSAR(small_net("batch").double(), objective, **kwargs, quirks=quirks)
    for seed in range(10):
        torch.testing.assert_close(method(images(seed)), reference.step(images(seed)), rtol=1e-6, atol=1e-9)
        assert_adapted(method, {name: reference.w[name] for name in NORM})
        torch.testing.assert_close(method.diagnostics["loss"], reference.value, rtol=1e-6, atol=1e-9)
        assert method.diagnostics["used"] == reference.events[-1][1]
    happened = {name for name, happens in EVENTS.items() if happens(reference.events)}
    assert happened >= must_happen
    assert reference.late or setting != "far, and never recovers"


@pytest.mark.parametrize("optimizer", [sgd, functools.partial(torch.optim.Adam, lr=0.05)], ids=["SGD", "Adam"])
def test_sar__nothing_reliable_moves_nothing(optimizer: Any) -> None:
    """Neither parameters nor moments of the optimizer: what follows is as if the batch had not been."""
    method, without = (SAR(GivenLogits(), EM(), optimizer, recovery=0.0) for _ in range(2))
    for one in (method, without):
        one(images_with(A, B))
        assert one.diagnostics["used"] == 2
    before = adapted_of(method)
    method(images_with(UNSURE, UNSURE))
    assert method.diagnostics["used"] == method.diagnostics["loss"] == 0
    assert not moved(method, before)
    assert torch.equal(method(images_with(B, B)), without(images_with(B, B)))
    assert not moved(method, adapted_of(without))
    assert moved(method, before)


@pytest.mark.parametrize("quirks", [False, True])
def test_sar__nothing_reliable_at_first_gives_no_nan(quirks: bool) -> None:
    method = make(margin=0.0, official_quirks=quirks)
    start = adapted_of(method)
    for seed in range(2):
        assert method(images(seed)).isfinite().all()
        assert not moved(method, start)


@pytest.mark.parametrize("rho", [0.05, 100.0])
def test_sar__ascent_goes_back_to_the_last_bit(rho: float) -> None:
    method = make(optimizer=functools.partial(torch.optim.SGD, lr=0.0), margin=1.0, recovery=0.0, rho=rho)
    start = adapted_of(method)
    method(images())
    assert method.diagnostics["used"] > 0
    assert not moved(method, start)


class FailsInSecondPass(EM):
    passes = 0

    def loss(self, z: Tensor) -> Tensor:
        self.passes += 1
        if self.passes == 2:
            raise RuntimeError
        return super().loss(z)


def test_sar__ascent_ends_after_an_error_too() -> None:
    method = make(FailsInSecondPass(), margin=1.0, rho=1.0)
    start = adapted_of(method)
    with pytest.raises(RuntimeError):
        method(images())
    assert not moved(method, start)


@pytest.mark.usefixtures("same_weights")
def test_sar__leaves_out_last_layers_of_a_resnet() -> None:
    method = SAR(timm.create_model("resnet10t", num_classes=5), EM(), sgd, margin=1.0, recovery=0.0)
    before = adapted_of(method)
    method(some_images(4).repeat(1, 1, 4, 4))
    assert {name.split(".")[0] for name in moved(method, before)} == {"conv1", "bn1", "layer1", "layer2", "layer3"}


@pytest.mark.usefixtures("same_weights")
def test_sar__leaves_out_last_layers_of_a_wrapped_vit() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=12, depth=12, num_heads=3, num_classes=5)
    with torch.no_grad():
        vit.head.weight.mul_(20)
    method = SAR(Backbone(vit, 5, (0.5,) * 3, (0.5,) * 3, "vit"), EM(), sgd, margin=1.0, recovery=0.0)
    before = adapted_of(method)
    method(some_images(4).repeat(1, 1, 4, 4))
    expected = {f"net.blocks.{i}.norm{j}.{kind}" for i in range(9) for j in (1, 2) for kind in ("weight", "bias")}
    assert moved(method, before) == expected


def test_sar__has_official_hyper_parameters() -> None:
    for model, lr in (("resnet50", 2.5e-4), ("resnet50_gn", 2.5e-4), ("vit_b16", 1e-3)):
        config = composed("method=sar", f"model={model}", "stream=imagenet_c")
        assert (config.optimizer.lr, config.method.recovery) == (lr, 0.2)
        assert composed("method=tent", f"model={model}").optimizer.lr == lr
    assert tuple(config.method.adapt.exclude_if_present) == NORM_BUT_LAST.exclude_if_present
    for stream in ("cifar10_c", "demo"):  # of few classes
        assert composed("method=sar", f"stream={stream}").method.recovery == 0.05


@pytest.mark.parametrize(
    "options",
    [{"margin": 1.5}, {"margin": "0.4"}, {"rho": -0.1}, {"recovery": math.nan}, {"momentum": 1.1}, {"window": -1}],
    ids=str,
)
def test_sar__refuses_values_out_of_range(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with raises_naming(ValueError, f"method.{name}", repr(value)):
        make(**options)

"""SAR (arXiv:2302.12400) against its formulas, and what its official code does."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import hydra
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers.backbones import CLASSES, SmallNet, small_net, some_images
from helpers.compositions import composed
from helpers.device_questions import DeviceQuestions
from helpers.plain import NORM, PlainAdaDEM, PlainSGD, classify, entropy, gradients, weights_of
from tta.backbones import Backbone
from tta.methods import SAR, BNAdapt
from tta.methods.parameters import NORM_BUT_LAST
from tta.methods.updates import ascended, forget_where
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


def make(kind: str = "batch", objective: Objective | None = None, optimizer: Any = sgd, **kwargs: Any) -> SAR:
    return SAR(small_net(kind).double(), objective or EM(), optimizer, **kwargs)


def images(seed: int = 0, n: int = 8) -> Tensor:
    return some_images(n, seed).double()


def weights(method: SAR) -> Tensor:
    return torch.cat([weight.detach() for weight in method.weights])


def table(method: SAR) -> Tensor:
    return method.objective.get_buffer("table")


def velocity(method: SAR) -> Tensor:
    return torch.cat([method.optimizer.state[weight]["momentum_buffer"] for weight in method.weights])


@pytest.mark.parametrize("adadem", [False, True], ids=["EM", "AdaDEM"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_follows_the_plain_formulas_for_several_steps(setting: str, adadem: bool) -> None:
    kwargs, quirks, must_happen = SETTINGS[setting]
    method = make(objective=AdaDEM() if adadem else EM(), official_quirks=quirks, **kwargs)
    objective = PlainAdaDEM if adadem else lambda: entropy
    reference = PlainSAR(small_net("batch").double(), objective, **kwargs, quirks=quirks)
    for seed in range(10):
        torch.testing.assert_close(method(images(seed)), reference.step(images(seed)), rtol=1e-6, atol=1e-9)
        expected = torch.cat([reference.w[name] for name in NORM])
        torch.testing.assert_close(weights(method), expected, rtol=1e-6, atol=1e-9)
        average = math.nan if reference.average is None else reference.average
        assert float(method.average) == pytest.approx(average, rel=1e-6, nan_ok=True)
        assert int(method.diagnostics["used"]) == reference.events[-1][1]
    happened = {name for name, happens in EVENTS.items() if happens(reference.events)}
    assert happened >= must_happen
    assert reference.late or setting != "far, and never recovers"


def test_predicts_before_the_update_and_at_the_parameters_themselves() -> None:
    assert torch.equal(make(rho=1.0)(images()), BNAdapt(small_net("batch").double())(images()))


@pytest.mark.parametrize("quirks", [False, True])
def test_a_recovery_begins_anew(quirks: bool) -> None:
    method = make(objective=AdaDEM(), margin=1.0, recovery=0.0, official_quirks=quirks)
    start = weights(method)
    for seed in range(3):
        method(images(seed))
    assert not torch.equal(weights(method), start)
    before = velocity(method)
    method.recovery = math.log(CLASSES)
    method(images(3))
    assert torch.equal(weights(method), start)
    assert torch.equal(table(method), torch.full_like(table(method), 1 / CLASSES))
    # The official code keeps the momentum, which this step has added to, and the average.
    assert bool(velocity(method).any()) == quirks
    assert bool(method.average.isnan()) != quirks
    assert not torch.equal(velocity(method), before)


@pytest.mark.parametrize("quirks", [False, True])
def test_the_official_code_recovers_until_the_average_has_climbed(quirks: bool) -> None:
    method = make(margin=1.0, recovery=1.5, official_quirks=quirks)
    start = weights(method)
    method(images(0))  # the first average is below 1.5 nats
    method.margin = 0.0  # nothing can move the average from now on
    with torch.no_grad():
        method.weights[0].add_(1)
    method(images(1))
    assert torch.equal(weights(method), start) == quirks


@pytest.mark.parametrize("optimizer", [sgd, torch.optim.Adam], ids=["SGD", "Adam"])
def test_nothing_changes_where_nothing_is_reliable(optimizer: Any) -> None:
    method = make(optimizer=optimizer, margin=1.0, recovery=0.0)
    method(images(0))
    before, average = weights(method), method.average.clone()
    state = [value.clone() for entries in method.optimizer.state.values() for value in entries.values()]
    method.margin = 0.0
    method(images(1))
    assert torch.equal(weights(method), before)
    assert torch.equal(method.average, average)
    after = [value for entries in method.optimizer.state.values() for value in entries.values()]
    assert all(torch.equal(a, b) for a, b in zip(state, after, strict=True))
    assert method.diagnostics["used"] == 0
    assert method.diagnostics["loss"] == 0


def test_the_official_code_moves_by_the_momentum_where_nothing_is_reliable() -> None:
    method = make(margin=1.0, recovery=0.0, official_quirks=True)
    method(images(0))
    before, moved = weights(method), velocity(method)
    method.margin = 0.0
    method(images(1))
    torch.testing.assert_close(weights(method), before - 0.05 * 0.9 * moved, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("quirks", [False, True])
def test_nothing_reliable_from_the_beginning_gives_no_nan(quirks: bool) -> None:
    method = make(margin=0.0, official_quirks=quirks)
    start = weights(method)
    method(images())
    assert torch.equal(weights(method), start)
    assert method.average.isnan()


def test_the_average_is_of_the_entropy_whatever_the_objective() -> None:
    one, other = make(margin=1.0), make(objective=AdaDEM(), margin=1.0, rho=0.0)
    one.rho = 0.0  # so that the second pass does not depend on the objective
    one(images()), other(images())
    assert one.diagnostics["loss"] != other.diagnostics["loss"]
    assert torch.equal(one.average, one.diagnostics["loss"])
    assert torch.equal(one.average, other.average)


def test_a_calibrator_learns_from_both_passes() -> None:
    method = make(objective=AdaDEM(), margin=1.0, rho=0.3)
    seen: list[Tensor] = []
    method.objective.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    method(images())
    assert [len(logits) for logits in seen] == [8, 8]
    assert not torch.equal(*seen)
    expected = AdaDEM()
    for logits in seen:
        expected(logits)
    assert torch.equal(table(method), expected.table)


def test_the_margin_is_a_fraction_of_ln_c() -> None:
    """An absolute margin would count all samples of 1 000 classes, or none of few."""
    entropy = EM()(BNAdapt(small_net("batch").double())(images()))
    for margin in (0.3, 0.5, 0.7):
        method = make(margin=margin, rho=0.0)
        method(images())
        assert method.diagnostics["used"] == (entropy < margin * math.log(CLASSES)).sum()


def test_the_last_layers_of_a_resnet_stay() -> None:
    method = SAR(timm.create_model("resnet10t", num_classes=5), EM(), sgd)
    names = [name for name, p in method.backbone.named_parameters() if p.requires_grad]
    assert {name.split(".")[0] for name in names} == {"conv1", "bn1", "layer1", "layer2", "layer3"}


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_last_layers_of_a_vit_stay_in_a_wrapper_too(wrapped: bool) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=12, depth=12, num_heads=3, num_classes=5)
    method = SAR(Backbone(vit, 5, (0.5,) * 3, (0.5,) * 3, "vit") if wrapped else vit, EM(), sgd)
    names = {name.removeprefix("net.") for name, p in method.backbone.named_parameters() if p.requires_grad}
    assert names == {f"blocks.{i}.norm{j}.{kind}" for i in range(9) for j in (1, 2) for kind in ("weight", "bias")}


def test_the_default_of_python_is_that_of_the_configuration() -> None:
    config = composed("method=sar", "stream=imagenet_c")
    from_yaml = hydra.utils.instantiate(config.method, backbone=small_net("batch"), _convert_="all")
    ours = SAR(small_net("batch"), EM(), sgd)
    for name in ("margin", "rho", "recovery", "momentum", "window", "official_quirks"):
        assert getattr(from_yaml, name) == getattr(ours, name), name
    choice = hydra.utils.instantiate(config.method.adapt, _convert_="all")
    assert tuple(choice.exclude_if_present) == NORM_BUT_LAST.exclude_if_present


def test_takes_one_image_without_batchnorm_or_with_a_window() -> None:
    assert make("layer", margin=1.0)(images(n=1)).shape == (1, CLASSES)
    method = make(margin=1.0, window=4)
    start = weights(method)
    changed = []
    for seed in range(4):
        assert method(images(seed, n=1)).shape == (1, CLASSES)
        changed.append(not torch.equal(weights(method), start))
    assert changed == [False, False, False, True]


def test_one_image_gives_no_batch_statistics() -> None:
    with pytest.raises(ValueError, match="SAR needs at least 2 images in every batch"):
        make()(images(n=1))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"margin": 1.5}, r"method.margin must be a number from 0 to 1, got 1.5"),
        ({"margin": "0.4"}, r"method.margin must be a number from 0 to 1, got '0.4'"),
        ({"rho": -0.1}, r"method.rho must be a number of at least 0, got -0.1"),
        ({"recovery": math.nan}, r"method.recovery must be a number of at least 0, got nan"),
        ({"momentum": 1.1}, r"method.momentum must be a number from 0 to 1, got 1.1"),
        ({"window": -1}, r"method.window must be a whole number of at least 0, got -1"),
    ],
    ids=str,
)
def test_wrong_values(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def parameters_with_gradients(seed: int, scale: float) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    made = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3,), (2, 4), (1,))]
    for parameter in made:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * scale
    return made


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 1000), rho=st.floats(0, 100), scale=st.floats(1e-3, 1e3))
def test_ascent_is_along_the_whole_gradient_by_rho_and_back_to_the_last_bit(
    seed: int, rho: float, scale: float
) -> None:
    parameters = parameters_with_gradients(seed, scale)
    before = [p.detach().clone() for p in parameters]
    gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    with ascended(parameters, rho):
        moves = [(p.detach() - b).flatten() for p, b in zip(parameters, before, strict=True)]
        torch.testing.assert_close(torch.cat(moves), rho * gradient / gradient.norm(), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_ascent_ends_after_an_error_too_and_skips_what_has_no_gradient() -> None:
    parameters = parameters_with_gradients(0, 1.0)
    parameters[0].grad = None
    before = [p.detach().clone() for p in parameters]
    moved: list[bool] = []

    def fail() -> None:
        with ascended(parameters, 1.0):
            moved.extend(not torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert moved == [False, True, True]
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_ascent_without_any_slope_stays() -> None:
    parameters = parameters_with_gradients(0, 0.0)
    before = [p.detach().clone() for p in parameters]
    with ascended(parameters, 1.0):
        assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


@pytest.mark.parametrize("condition", [False, True])
def test_an_objective_forgets_where_the_condition_holds(condition: bool) -> None:
    objective = AdaDEM()
    objective(torch.eye(3))
    learnt = objective.table.clone()
    forget_where(torch.tensor(condition), objective)
    assert torch.equal(objective.table, torch.full((3, 3), 1 / 3) if condition else learnt)


def test_a_step_never_asks_the_device() -> None:
    method = make(objective=AdaDEM())
    method(images(0))
    with DeviceQuestions() as questions:
        method(images(1))
    assert questions.asked == []


@pytest.mark.parametrize(("model", "lr"), [("resnet50", 2.5e-4), ("resnet50_gn", 2.5e-4), ("vit_b16", 1e-3)])
def test_official_hyper_parameters(model: str, lr: float) -> None:
    config = composed("method=sar", f"model={model}", "stream=imagenet_c")
    assert (config.optimizer.lr, config.method.recovery) == (lr, 0.2)
    assert composed("method=tent", f"model={model}").optimizer.lr == lr


@pytest.mark.parametrize("stream", ["cifar10_c", "demo"])
def test_the_threshold_for_few_classes_is_smaller(stream: str) -> None:
    assert composed("method=sar", f"stream={stream}").method.recovery == 0.05

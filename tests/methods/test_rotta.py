"""RoTTA against its paper, recomputed by another route, and what is easy to get wrong in it."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.backbones import SmallNet, small_net, some_images
from helpers.errors import raises_naming
from helpers.plain import (
    NORM,
    Moments,
    PlainSGD,
    Weights,
    adapted_of,
    assert_adapted,
    classify,
    mixed,
    moved,
    running_of,
    soft,
    weights_of,
)
from tta.methods import RoTTA, Source
from tta.methods.common.augment import augment
from tta.methods.common.cstu import CSTU

sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)


class PlainMemory:
    """The sampling of the paper's algorithm 1, with one list of [image, uncertainty, age, place] for each class.

    The places tell the order of the images, which decides which noise each of them is augmented with.
    """

    def __init__(self, capacity: int, classes: int, lambda_t: float, lambda_u: float) -> None:
        self.lists: list[list[list[Any]]] = [[] for _ in range(classes)]
        self.capacity, self.lambda_t, self.lambda_u = capacity, lambda_t, lambda_u
        self.events: list[str] = []

    def score(self, uncertainty: float, age: int) -> float:
        timeliness = 1 / (1 + math.exp(-age / self.capacity))
        return self.lambda_t * timeliness + self.lambda_u * uncertainty / math.log(len(self.lists))

    def add(self, image: Any, label: int, uncertainty: float) -> None:
        if len(self.lists[label]) < self.capacity / len(self.lists):
            if sum(len(held) for held in self.lists) < self.capacity:
                search: list[int] = []
            else:
                most = max(len(held) for held in self.lists)
                search = [c for c, held in enumerate(self.lists) if len(held) == most]
        else:
            search = [label]
        new = [image, uncertainty, 0, sum(map(len, self.lists))]
        if not search:
            self.lists[label].append(new)
            self.events.append("added")
        else:
            score, c, place = max(
                (self.score(u, age), c, place) for c in search for place, (_, u, age, _) in enumerate(self.lists[c])
            )
            if score > self.score(uncertainty, 0):
                new[3] = self.lists[c].pop(place)[3]
                self.lists[label].append(new)
                self.events.append("replaced its own class" if search == [label] else "replaced a majority class")
            else:
                self.events.append("left out")
        for held in self.lists:
            for item in held:
                item[2] += 1

    def items(self) -> list[list[Any]]:
        return sorted((item for held in self.lists for item in held), key=lambda item: item[3])


class PlainNetwork:
    """Weights, and running statistics that a forward in training mixes with the batch's and keeps."""

    def __init__(self, net: SmallNet) -> None:
        self.weights, self.running = weights_of(net), running_of(net)

    def forward(self, weights: Weights, x: Tensor, training: bool) -> Tensor:
        def statistics(layer: str, h: Tensor) -> Moments:
            mean, var = mixed(self.running, 0.05 if training else 0.0)(layer, h)
            self.running[layer] = mean.detach(), var.detach()
            return mean, var

        return classify(weights, x, statistics)


class PlainRoTTA:
    """One step after another as the paper and the official code have them; only the augmentation is the method's."""

    def __init__(self, net: SmallNet, memory: int, update_every: int, nu: float, lambdas: tuple[float, float]) -> None:
        self.student, self.teacher = PlainNetwork(net), PlainNetwork(net)
        self.optimizer = PlainSGD(self.student.weights, NORM, 0.05, 0.9)
        self.memory = PlainMemory(memory, 5, *lambdas)
        self.update_every, self.nu, self.seen, self.used = update_every, nu, 0, 0
        self.draws, self.noise = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
        self.losses: list[Tensor] = []

    def step(self, x: Tensor) -> Tensor:
        logits = self.teacher.forward(self.teacher.weights, x, training=False)
        self.used, self.losses = 0, []
        for image, p in zip(x, soft(logits).tolist(), strict=True):
            self.memory.add(image, p.index(max(p)), -sum(v * math.log(v) for v in p))
            self.seen += 1
            if self.seen % self.update_every == 0:
                self.update()
        return logits

    def update(self) -> None:
        items = self.memory.items()
        images = torch.stack([image for image, *_ in items])
        leaves = self.optimizer.leaves()
        q = soft(self.teacher.forward(self.teacher.weights, images, training=True))
        p = soft(self.student.forward(leaves, augment(images, self.draws, self.noise), training=True))
        loss = torch.zeros((), dtype=images.dtype)
        for n, (_, _, age, _) in enumerate(items):
            age = age / self.memory.capacity
            weight = math.exp(-age) / (1 + math.exp(-age))
            for c in range(5):
                loss = loss - weight * q[n, c] * p[n, c].log() / len(items)
        self.losses.append(loss.detach())
        self.optimizer.step(loss, leaves)
        for name, new in self.student.weights.items():
            self.teacher.weights[name] = (1 - self.nu) * self.teacher.weights[name] + self.nu * new
        self.used += len(items)


def rotta(net: SmallNet, **kwargs: Any) -> RoTTA:
    return RoTTA(net, sgd, **{"seed": 7, **kwargs})


# Batches smaller and larger than update_every, so that there are batches with no update, one, and several.
@pytest.mark.parametrize(
    ("memory", "update_every", "lambdas"), [(6, 7, (1.0, 1.0)), (5, 3, (0.5, 2.0)), (12, 4, (1.0, 0.0))]
)
def test_rotta__follows_plain_formulas(memory: int, update_every: int, lambdas: tuple[float, float]) -> None:
    net = small_net("batch").double()
    method = rotta(
        net,
        memory=memory,
        update_every=update_every,
        teacher_momentum=0.2,
        timeliness_weight=lambdas[0],
        uncertainty_weight=lambdas[1],
    )
    plain = PlainRoTTA(net, memory, update_every, 0.2, lambdas)
    for seed, n in enumerate((3, 5, 1, 16, 8, 2, 8)):
        images = some_images(n, seed=seed).double()
        torch.testing.assert_close(method(images), plain.step(images), rtol=1e-6, atol=1e-9)
        assert_adapted(method, plain.student.weights)
        assert method.diagnostics["used"] == plain.used
        if plain.used:
            torch.testing.assert_close(method.diagnostics["loss"], torch.stack(plain.losses).mean())
        else:
            assert "loss" not in method.diagnostics


def offer_all(samples: list[tuple[int, float]], capacity: int, lambdas: tuple[float, float]) -> set[str]:
    """Offer samples to both memories, compare what they hold after each, and tell what happened."""
    ours, plain = CSTU([], capacity, 4, *lambdas), PlainMemory(capacity, 4, *lambdas)
    held: dict[int, int] = {}
    for number, (label, uncertainty) in enumerate(samples):
        plain.add(number, label, uncertainty)
        slot = ours.add(label, uncertainty)
        assert (slot is None) == (plain.events[-1] == "left out")
        if slot is not None:
            held[slot] = number
        assert sorted(held) == list(range(len(ours.entries)))  # images lie without gaps
        ages = {number: ours.entries[slot].age for slot, number in held.items()}
        assert ages == {image: age for image, _, age, _ in plain.items()}
    return set(plain.events)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.lists(st.tuples(st.integers(0, 3), st.floats(0, math.log(4))), max_size=60),
    capacity=st.integers(1, 10),
    lambdas=st.sampled_from([(1.0, 1.0), (1.0, 0.0), (0.3, 2.0)]),
)
def test_memory__holds_what_the_paper_says(
    samples: list[tuple[int, float]], capacity: int, lambdas: tuple[float, float]
) -> None:
    assert ("added" in offer_all(samples, capacity, lambdas)) == bool(samples)


# Of a capacity that is a multiple of the 4 classes, no class ever has more than its share.
@pytest.mark.parametrize(("capacity", "majority"), [(7, True), (8, False)])
def test_memory__holds_the_same_over_long_streams(capacity: int, majority: bool) -> None:
    events = set()
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        entropies = (math.log(4) * torch.rand(100, generator=generator, dtype=torch.float64)).tolist()
        labels = (torch.arange(100) // 10 + torch.randint(0, 2, (100,), generator=generator)) % 4
        events |= offer_all(list(zip(labels.tolist(), entropies, strict=True)), capacity, (1.0, 1.0))
    always = {"added", "replaced its own class", "left out"}
    assert events == (always | {"replaced a majority class"} if majority else always)


def test_rotta__predictions_do_not_depend_on_company() -> None:
    """They are made with the teacher's running statistics, which updates move, and predictions do not."""
    net = small_net("batch").double()
    method, twin = rotta(net, update_every=8, memory=8), rotta(net, update_every=8, memory=8)
    images = some_images(8).double()
    torch.testing.assert_close(method(images), Source(net)(images))
    twin(images)
    company = some_images(4, seed=1).double()
    together = method(company)
    torch.testing.assert_close(torch.cat([twin(one) for one in company.split(1)]), together)
    assert not torch.allclose(together, Source(net)(company))


def test_rotta__updates_under_autocast() -> None:
    method = rotta(small_net("batch"), update_every=8, memory=8)
    before = adapted_of(method)
    with torch.autocast("cpu", torch.bfloat16):
        for seed in range(2):
            assert method(some_images(seed=seed)).isfinite().all()
    assert method.diagnostics["loss"].isfinite()
    assert "body.1.weight" in moved(method, before)


def test_rotta__adapts_other_normalisation_layers_too() -> None:
    method = rotta(small_net("layer"), update_every=8, memory=8)
    before = adapted_of(method)
    method(some_images())
    assert {"body.1.weight", "last.bias"} <= moved(method, before)


def test_rotta__draws_nothing_from_global_generator() -> None:
    before = torch.get_rng_state()
    rotta(small_net("batch"), update_every=4)(some_images())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "options",
    [
        {"seed": -1},
        {"memory": 0},
        {"update_every": 2.5},
        {"teacher_momentum": 1.5},
        {"timeliness_weight": -1},
        {"uncertainty_weight": -1},
        {"share": 2},
    ],
    ids=str,
)
def test_rotta__refuses_values_out_of_range(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with raises_naming(ValueError, name, value):
        rotta(small_net("batch"), **options)

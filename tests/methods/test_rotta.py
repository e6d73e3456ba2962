"""RoTTA against its paper, recomputed by another route, and what is easy to get wrong in it."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.backbones import SmallNet, small_net, some_images
from helpers.plain import NORM, Moments, PlainSGD, Weights, classify, mixed, running_of, soft, weights_of
from tta.methods import RoTTA, Source
from tta.methods import rotta as rotta_module
from tta.methods.batchnorm import MixedBatchNorm, mix_statistics, running_statistics
from tta.methods.memory import Memory

sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def strong(x: Tensor) -> Tensor:
    """An augmentation without randomness."""
    return x.flip(-1) * 0.7 + 0.1


class PlainMemory:
    """The sampling of the paper's algorithm 1, with one list of [image, uncertainty, age] for each class."""

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
        new = [image, uncertainty, 0]
        if not search:
            self.lists[label].append(new)
            self.events.append("added")
        else:
            score, c, place = max(
                (self.score(u, age), c, place) for c in search for place, (_, u, age) in enumerate(self.lists[c])
            )
            if score > self.score(uncertainty, 0):
                del self.lists[c][place]
                self.lists[label].append(new)
                self.events.append("replaced its own class" if search == [label] else "replaced a majority class")
            else:
                self.events.append("left out")
        for held in self.lists:
            for item in held:
                item[2] += 1

    def items(self) -> list[list[Any]]:
        return [item for held in self.lists for item in held]


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
    """One step after another as the paper and the official code have them, but for the augmentation."""

    def __init__(self, net: SmallNet, memory: int, update_every: int, nu: float, lambdas: tuple[float, float]) -> None:
        self.student, self.teacher = PlainNetwork(net), PlainNetwork(net)
        self.optimizer = PlainSGD(self.student.weights, NORM, 0.05, 0.9)
        self.memory = PlainMemory(memory, 5, *lambdas)
        self.update_every, self.nu, self.seen, self.used = update_every, nu, 0, 0

    def step(self, x: Tensor) -> Tensor:
        logits = self.teacher.forward(self.teacher.weights, x, training=False)
        self.used = 0
        for image, p in zip(x, soft(logits).tolist(), strict=True):
            self.memory.add(image, p.index(max(p)), -sum(v * math.log(v) for v in p))
            self.seen += 1
            if self.seen % self.update_every == 0:
                self.update()
        return logits

    def update(self) -> None:
        items = self.memory.items()
        images = torch.stack([image for image, _, _ in items])
        leaves = self.optimizer.leaves()
        q = soft(self.teacher.forward(self.teacher.weights, images, training=True))
        p = soft(self.student.forward(leaves, strong(images), training=True))
        loss = torch.zeros((), dtype=images.dtype)
        for n, (_, _, age) in enumerate(items):
            age = age / self.memory.capacity
            weight = math.exp(-age) / (1 + math.exp(-age))
            for c in range(5):
                loss = loss - weight * q[n, c] * p[n, c].log() / len(items)
        self.optimizer.step(loss, leaves)
        for name, new in self.student.weights.items():
            self.teacher.weights[name] = (1 - self.nu) * self.teacher.weights[name] + self.nu * new
        self.used += len(items)


def rotta(net: SmallNet, **kwargs: Any) -> RoTTA:
    return RoTTA(net, sgd, **{"seed": 7, **kwargs})


def assert_alike(method: RoTTA, plain: PlainRoTTA) -> None:
    for module, network in ((method.backbone, plain.student), (method.teacher, plain.teacher)):
        torch.testing.assert_close(weights_of(module), network.weights, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(running_of(module), network.running, rtol=1e-6, atol=1e-9)
    held = [[label, u, age] for label, items in enumerate(plain.memory.lists) for _, u, age in items]
    np.testing.assert_allclose(sorted(method.entries.tolist()), sorted(held), rtol=1e-6)
    images = {tuple(image.flatten().tolist()) for image in method.images[: len(held)]}
    assert images == {tuple(image.flatten().tolist()) for image, _, _ in plain.memory.items()}


# Batches smaller and larger than update_every, so that there are batches with no update, one, and several.
@pytest.mark.parametrize(
    ("memory", "update_every", "lambdas"), [(6, 7, (1.0, 1.0)), (5, 3, (0.5, 2.0)), (12, 4, (1.0, 0.0)), (2, 5, (1, 1))]
)
def test_follows_the_plain_formulas_for_several_steps(
    memory: int, update_every: int, lambdas: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotta_module, "augment", lambda images, *_: strong(images))
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
        assert_alike(method, plain)
        assert method.diagnostics["used"] == plain.used
        assert ("loss" in method.diagnostics) == bool(plain.used)


def offer_all(samples: list[tuple[int, float]], capacity: int, lambdas: tuple[float, float]) -> set[str]:
    """Offer samples to both memories, compare what they hold after each, and tell what happened."""
    ours, plain = Memory([], capacity, 4, *lambdas), PlainMemory(capacity, 4, *lambdas)
    held: dict[int, int] = {}
    for number, (label, uncertainty) in enumerate(samples):
        plain.add(number, label, uncertainty)
        slot = ours.offer(label, uncertainty)
        assert (slot is None) == (plain.events[-1] == "left out")
        if slot is not None:
            held[slot] = number
        assert sorted(held) == list(range(len(ours.entries)))  # images lie without gaps
        ages = {number: ours.entries[slot].age for slot, number in held.items()}
        assert ages == {image: age for image, _, age in plain.items()}
    return set(plain.events)


@settings(max_examples=100, deadline=None)
@given(
    samples=st.lists(st.tuples(st.integers(0, 3), st.floats(0, math.log(4))), max_size=60),
    capacity=st.integers(1, 10),
    lambdas=st.sampled_from([(1.0, 1.0), (1.0, 0.0), (0.3, 2.0)]),
)
def test_memory_holds_what_the_papers_algorithm_holds(
    samples: list[tuple[int, float]], capacity: int, lambdas: tuple[float, float]
) -> None:
    events = offer_all(samples, capacity, lambdas)
    assert ("added" in events) == bool(samples)


# Of a capacity that is a multiple of the 4 classes, no class ever has more than its share.
@pytest.mark.parametrize(("capacity", "majority"), [(6, True), (7, True), (8, False)])
def test_memory_holds_the_same_over_long_streams(capacity: int, majority: bool) -> None:
    events = set()
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        entropies = (math.log(4) * torch.rand(100, generator=generator, dtype=torch.float64)).tolist()
        labels = (torch.arange(100) // 10 + torch.randint(0, 2, (100,), generator=generator)) % 4
        events |= offer_all(list(zip(labels.tolist(), entropies, strict=True)), capacity, (1.0, 1.0))
    always = {"added", "replaced its own class", "left out"}
    assert events == (always | {"replaced a majority class"} if majority else always)


def test_a_class_keeps_to_its_share_even_while_there_is_room() -> None:
    memory = Memory([], 10, 5, 1.0, 1.0)
    slots = [memory.offer(3, 0.5) for _ in range(4)]
    assert slots == [0, 1, 0, 1]


def test_predicts_with_the_teachers_running_statistics_and_so_whatever_the_company() -> None:
    net = small_net("batch")
    method = rotta(net, update_every=8, memory=8)
    torch.testing.assert_close(method(some_images(8)), Source(net)(some_images(8)))
    before = {name: buffer.clone() for name, buffer in method.teacher.named_buffers()}
    alone = method(some_images(1, seed=1))
    assert all(torch.equal(buffer, before[name]) for name, buffer in method.teacher.named_buffers())
    twin = rotta(net, update_every=8, memory=8)
    twin(some_images(8))
    torch.testing.assert_close(twin(some_images(4, seed=1)[:1].expand(4, -1, -1, -1))[:1], alone)
    assert not torch.allclose(alone, Source(net)(some_images(1, seed=1)))  # the update has moved them


def test_teacher_and_student_have_statistics_of_their_own() -> None:
    method = rotta(small_net("batch"), update_every=8, memory=8)
    method(some_images())
    student, teacher = (dict(module.named_buffers()) for module in (method.backbone, method.teacher))
    assert not any(torch.equal(student[name], teacher[name]) for name in teacher)
    # Only parameters are averaged: with nothing of the student in them the teacher's statistics move all the same.
    still = rotta(small_net("batch"), update_every=8, memory=8, teacher_momentum=0.0)
    still(some_images())
    assert all(torch.equal(p, weights_of(small_net("batch"))[name]) for name, p in still.teacher.named_parameters())
    assert not torch.equal(still.teacher.get_buffer("body.1.running_mean"), torch.linspace(-0.5, 0.5, 8))


def test_one_image_at_a_time_is_the_same_as_a_batch_until_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotta_module, "augment", lambda images, *_: strong(images))
    whole, single = (rotta(small_net("batch").double(), update_every=8, memory=6) for _ in range(2))
    images = some_images(8).double()
    expected = whole(images)
    torch.testing.assert_close(torch.cat([single(image[None]) for image in images]), expected)
    torch.testing.assert_close(weights_of(single.teacher), weights_of(whole.teacher))


def test_augments_the_students_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def watched(images: Tensor, *generators: torch.Generator) -> Tensor:
        seen.append(images)
        return images

    monkeypatch.setattr(rotta_module, "augment", watched)
    method = rotta(small_net("batch"), update_every=8, memory=8)
    method(some_images())
    assert len(seen) == 1
    # Without augmentation both networks saw the same.
    student, teacher = (dict(module.named_buffers()) for module in (method.backbone, method.teacher))
    assert all(torch.equal(student[name], teacher[name]) for name in teacher)


def test_running_statistics_alone() -> None:
    net = small_net("batch").eval()
    images = some_images()
    expected = net(images)
    mix_statistics(net, 0.5, track=True)
    with running_statistics(net):
        torch.testing.assert_close(net(images), expected)
    layer = net.get_submodule("body.1")
    assert isinstance(layer, MixedBatchNorm)
    before = layer.running_mean.clone()
    assert not torch.allclose(net(images), expected)
    assert not torch.equal(layer.running_mean, before)
    moved = layer.running_mean.clone()
    with pytest.raises(RuntimeError), running_statistics(net):
        raise RuntimeError
    net(images)
    assert not torch.equal(layer.running_mean, moved)  # an error leaves nothing switched off


def test_updates_under_autocast() -> None:
    method = rotta(small_net("batch"), update_every=8, memory=8)
    with torch.autocast("cpu", torch.bfloat16):
        method(some_images())
        assert method(some_images(seed=1)).isfinite().all()
    assert method.diagnostics["loss"].isfinite()
    assert not torch.equal(
        method.backbone.get_parameter("body.1.weight"), weights_of(small_net("batch"))["body.1.weight"]
    )


@pytest.mark.parametrize("kind", ["layer", "group"])
def test_adapts_other_normalisation_layers_too(kind: str) -> None:
    net = small_net(kind)
    method = rotta(net, update_every=8, memory=8)
    method(some_images())
    assert not torch.equal(method.backbone.get_parameter("body.1.weight"), weights_of(net)["body.1.weight"])


def test_draws_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    rotta(small_net("batch"), update_every=4)(some_images())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("seed", -1, "method.seed must be a whole number of at least 0, got -1"),
        ("memory", 0, "method.memory must be a whole number of at least 1, got 0"),
        ("update_every", 2.5, "method.update_every must be a whole number of at least 1, got 2.5"),
        ("teacher_momentum", 1.5, "method.teacher_momentum must be a number from 0 to 1, got 1.5"),
        ("timeliness_weight", -1, "method.timeliness_weight must be a number of at least 0, got -1"),
        ("uncertainty_weight", -1, "method.uncertainty_weight must be a number of at least 0, got -1"),
        ("share", 2, r"share of the batch in the BatchNorm statistics must be in \[0, 1\], got 2"),
    ],
)
def test_says_what_is_wrong_with_a_value(option: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rotta(small_net("batch"), **{option: value})

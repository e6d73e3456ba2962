"""CoTTA against its paper, recomputed by another route, and what is easy to get wrong in it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.backbones import SmallNet, small_net, some_images
from helpers.plain import PlainSGD, classify, soft, weights_of
from tta.methods import BNAdapt, CoTTA
from tta.methods import cotta as cotta_module
from tta.methods.augment import augment

sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)


class PlainCoTTA:
    """One step after another as the paper and the official code have them, with loops over samples and classes.

    Only the random numbers are the method's own: augmentations, and the masks of what is restored.
    """

    def __init__(self, net: SmallNet, momentum: float, restore: float, confidence: float, symmetric: bool) -> None:
        self.source, self.teacher, self.student = weights_of(net), weights_of(net), weights_of(net)
        self.optimizer = PlainSGD(self.student, list(self.student), 0.05, 0.9)
        self.momentum, self.restore, self.confidence, self.symmetric = momentum, restore, confidence, symmetric
        self.draws, self.noise = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
        self.averaged: list[bool] = []

    def teach(self, x: Tensor) -> Tensor:
        sure = [max(p) for p in soft(classify(self.source, x)).tolist()]
        self.averaged.append(sum(sure) / len(sure) < self.confidence)
        if not self.averaged[-1]:
            return classify(self.teacher, x)
        logits = torch.zeros(len(x), 5, dtype=x.dtype)
        for _ in range(3):
            logits = logits + classify(self.teacher, augment(x, self.draws, self.noise)) / 3
        return logits

    def step(self, x: Tensor) -> Tensor:
        leaves = self.optimizer.leaves()
        p, q_logits = soft(classify(leaves, x)), self.teach(x)
        q = soft(q_logits)
        loss = torch.zeros((), dtype=x.dtype)
        for n in range(len(x)):
            for c in range(5):
                one_way = -q[n, c] * p[n, c].log() / len(x)
                other_way = -p[n, c] * q[n, c].log() / len(x)
                loss = loss + ((one_way + other_way) / 2 if self.symmetric else one_way)
        self.optimizer.step(loss, leaves)
        for name in self.teacher:
            self.teacher[name] = self.momentum * self.teacher[name] + (1 - self.momentum) * self.student[name]
            back = torch.rand(self.student[name].shape, generator=self.noise) < self.restore
            self.student[name] = torch.where(back, self.source[name], self.student[name])
        return q_logits


def cotta(net: SmallNet, **kwargs: Any) -> CoTTA:
    return CoTTA(net, sgd, **{"augmentations": 3, "seed": 7, **kwargs})


# The batches' mean confidence in the source model is on both sides of 0.595.
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("confidence", "averaged"), [(0.0, {False}), (0.595, {False, True}), (1.0, {True})])
def test_follows_the_plain_formulas_for_several_steps(confidence: float, averaged: set[bool], symmetric: bool) -> None:
    net = small_net("batch").double()
    options: dict[str, Any] = {"restore": 0.3, "confidence": confidence, "symmetric": symmetric}
    method, plain = cotta(net, teacher_momentum=0.8, **options), PlainCoTTA(net, momentum=0.8, **options)
    for seed in range(5):
        images = some_images(seed=seed).double()
        torch.testing.assert_close(method(images), plain.step(images), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(weights_of(method.backbone), plain.student, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(weights_of(method.teacher), plain.teacher, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(weights_of(method.anchor), plain.source, rtol=0, atol=0)
    assert set(plain.averaged) == averaged


def apart(method: CoTTA) -> CoTTA:
    """Let the student differ: without augmentations, it has no gradient where it is the teacher."""
    with torch.no_grad():
        method.backbone.get_parameter("head.weight").mul_(1.5)
    return method


def test_returns_the_teachers_logits_from_before_the_update() -> None:
    net = small_net("batch")
    still = apart(cotta(net, confidence=0.0, teacher_momentum=1.0))
    for seed in range(3):
        images = some_images(seed=seed)
        assert torch.equal(still(images), BNAdapt(net)(images))
    # A teacher that is the student of the step before.
    follower = apart(cotta(net, confidence=0.0, teacher_momentum=0.0, restore=0.0))
    assert torch.equal(follower(images), BNAdapt(net)(images))
    student = follower.backbone(images).detach()
    assert not torch.allclose(student, BNAdapt(net)(images))
    torch.testing.assert_close(follower(images), student)


MOVED = ("body.1.weight", "body.3.weight", "head.weight")  # biases of convolutions before BatchNorm have no gradient


def test_restores_after_the_teacher_has_taken_in_the_student() -> None:
    net = small_net("batch")
    method = cotta(net, restore=1.0, teacher_momentum=0.5)
    method(some_images())
    source = weights_of(net)
    assert all(torch.equal(p, source[name]) for name, p in method.backbone.named_parameters())
    assert not any(torch.equal(method.teacher.get_parameter(name), source[name]) for name in MOVED)


def restored(net: SmallNet, **kwargs: Any) -> Tensor:
    method = cotta(net, **kwargs)
    method(some_images())
    source = weights_of(net)
    return torch.cat([(method.backbone.get_parameter(name) == source[name]).flatten() for name in MOVED])


def test_restores_the_given_share_of_the_weights_at_random_places() -> None:
    net = small_net("batch")
    assert restored(net, restore=0.0).double().mean() < 0.01
    assert 0.2 < restored(net, restore=0.25).double().mean() < 0.3
    assert torch.equal(restored(net, restore=0.25), restored(net, restore=0.25))
    assert not torch.equal(restored(net, restore=0.25), restored(net, restore=0.25, seed=8))


def test_the_anchor_normalises_with_the_batch_as_well() -> None:
    method = cotta(small_net("batch"))
    for module in (method.backbone, method.teacher, method.anchor):
        assert not any("running" in name for name, _ in module.named_buffers())


@pytest.mark.parametrize(("confidence", "expected"), [(0.0, 0), (1.0, 4)])
def test_augments_only_where_the_anchor_is_unsure(
    confidence: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(images: Tensor, *generators: torch.Generator) -> Tensor:
        calls.append(len(images))
        return images

    monkeypatch.setattr(cotta_module, "augment", counted)
    cotta(small_net("batch"), confidence=confidence, augmentations=4)(some_images())
    assert calls == [8] * expected


def test_trains_every_weight_and_bias_but_no_tokens() -> None:
    import timm

    net = timm.create_model("test_vit", num_classes=5)
    adapted = {name for name, p in CoTTA(net, sgd).backbone.named_parameters() if p.requires_grad}
    left = {name for name, _ in net.named_parameters()} - adapted
    assert {"cls_token", "pos_embed"} <= left
    assert not any(name.endswith(("weight", "bias")) for name in left)


def test_a_window_predicts_with_the_teacher_between_updates() -> None:
    net = small_net("batch")
    method = apart(cotta(net, window=4, teacher_momentum=0.5))
    images = some_images(6)
    for one in images[:5]:
        method(one[None])
    expected = weights_of(method.teacher)
    logits = method(images[5:])  # the sixth image is not the last of a window
    assert all(torch.equal(p, expected[name]) for name, p in method.teacher.named_parameters())
    with torch.no_grad():
        assert torch.equal(logits, method.teacher(images[2:])[-1:])


def test_one_image_is_enough_without_batchnorm() -> None:
    assert cotta(small_net("layer"))(some_images(1)).shape == (1, 5)


def test_draws_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    cotta(small_net("batch"), confidence=1.0)(some_images())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("seed", -1, "method.seed must be a whole number of at least 0, got -1"),
        ("augmentations", 0, "method.augmentations must be a whole number of at least 1, got 0"),
        ("teacher_momentum", 1.5, "method.teacher_momentum must be a number from 0 to 1, got 1.5"),
        ("restore", -0.1, "method.restore must be a number from 0 to 1, got -0.1"),
        ("confidence", float("nan"), "method.confidence must be a number from 0 to 1, got nan"),
    ],
)
def test_says_what_is_wrong_with_a_value(option: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cotta(small_net("batch"), **{option: value})

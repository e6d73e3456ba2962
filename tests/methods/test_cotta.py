"""CoTTA against its paper, recomputed by another route, and what is easy to get wrong in it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from helpers.backbones import SmallNet, small_net, some_images
from helpers.errors import raises_naming
from helpers.plain import PlainSGD, adapted_of, assert_adapted, classify, moved, soft, weights_of
from tta.methods import CoTTA
from tta.methods.common.augment import augment

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
        self.drifted = False  # whether the teacher's confidence has ever been on the other side than the source's

    def teach(self, x: Tensor) -> Tensor:
        source, teacher = (sum(map(max, soft(classify(w, x)).tolist())) / len(x) for w in (self.source, self.teacher))
        self.averaged.append(source < self.confidence)
        self.drifted |= (teacher < self.confidence) != self.averaged[-1]
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
        self.loss = loss.detach()
        self.optimizer.step(loss, leaves)
        for name in self.teacher:
            self.teacher[name] = self.momentum * self.teacher[name] + (1 - self.momentum) * self.student[name]
            back = torch.rand(self.student[name].shape, generator=self.noise) < self.restore
            self.student[name] = torch.where(back, self.source[name], self.student[name])
        return q_logits


def cotta(net: SmallNet, **kwargs: Any) -> CoTTA:
    return CoTTA(net, sgd, **{"augmentations": 3, "seed": 7, **kwargs})


# The batches' mean confidence in the source model is on both sides of 0.62.
@pytest.mark.parametrize(
    ("confidence", "averaged", "symmetric"), [(0.0, {False}, True), (0.62, {False, True}, False), (1.0, {True}, True)]
)
def test_cotta__follows_plain_formulas(confidence: float, averaged: set[bool], symmetric: bool) -> None:
    net = small_net("batch").double()
    options: dict[str, Any] = {"restore": 0.3, "confidence": confidence, "symmetric": symmetric}
    method, plain = cotta(net, teacher_momentum=0.8, **options), PlainCoTTA(net, momentum=0.8, **options)
    for seed in range(3, 9):
        images = some_images(seed=seed).double()
        torch.testing.assert_close(method(images), plain.step(images), rtol=1e-6, atol=1e-9)
        assert_adapted(method, plain.student)
        torch.testing.assert_close(method.diagnostics["loss"], plain.loss, rtol=1e-6, atol=1e-9)
        assert method.diagnostics["used"] == 8
    assert set(plain.averaged) == averaged
    assert plain.drifted == (len(averaged) > 1)


MOVED = ("body.1.weight", "body.3.weight", "head.weight")  # biases of convolutions before BatchNorm have no gradient


def restored(net: SmallNet, **kwargs: Any) -> Tensor:
    """Tell for each weight whether it is the source's after a step."""
    method = cotta(net, confidence=1.0, **kwargs)
    method(some_images())
    found, source = adapted_of(method), weights_of(net)
    return torch.cat([(found[name] == source[name]).flatten() for name in MOVED])


def test_cotta__restores_given_share_at_random_places() -> None:
    net = small_net("batch")
    assert restored(net, restore=1.0).all()
    assert restored(net, restore=0.0).double().mean() < 0.01
    quarter = restored(net, restore=0.25)
    assert 0.2 < quarter.double().mean() < 0.3
    assert torch.equal(restored(net, restore=0.25), quarter)
    assert not torch.equal(restored(net, restore=0.25, seed=8), quarter)


def test_cotta__trains_weights_biases_but_no_tokens() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model("test_vit", num_classes=5)
        torch.nn.init.normal_(net.head.weight)
    method = cotta(net, confidence=1.0, restore=0.0)
    before = adapted_of(method)
    method(some_images(2).repeat(1, 1, 20, 20))
    changed = moved(method, before)
    assert {"patch_embed.proj.weight", "blocks.0.norm1.bias", "blocks.0.attn.qkv.weight", "head.bias"} <= changed
    assert all(name.endswith(("weight", "bias")) for name in changed)
    assert {"cls_token", "pos_embed"} <= set(before) - changed


def test_cotta__teacher_predicts_between_updates() -> None:
    """Without augmentations, and learns nothing."""
    net = small_net("batch").double()
    options: dict[str, Any] = {"restore": 0.3, "confidence": 1.0, "symmetric": False}
    method, plain = cotta(net, window=4, teacher_momentum=0.5, **options), PlainCoTTA(net, momentum=0.5, **options)
    images = some_images(6).double()
    for n in range(6):
        logits, window = method(images[n : n + 1]), images[max(0, n - 3) : n + 1]
        if n:  # the first has no company
            expected = plain.step(window) if n == 3 else classify(plain.teacher, window)
            torch.testing.assert_close(logits, expected[-1:].detach(), rtol=1e-6, atol=1e-9)
    assert_adapted(method, plain.student)


def test_cotta__draws_nothing_from_global_generator() -> None:
    before = torch.get_rng_state()
    cotta(small_net("batch"), confidence=1.0)(some_images())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "options",
    [{"seed": -1}, {"augmentations": 0}, {"teacher_momentum": 1.5}, {"restore": -0.1}, {"confidence": float("nan")}],
    ids=str,
)
def test_cotta__refuses_values_out_of_range(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with raises_naming(ValueError, f"method.{name}", value):
        cotta(small_net("batch"), **options)

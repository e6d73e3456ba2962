"""Loss scaling: the factor of torch's own GradScaler, gradients that float16 alone would lose, and overflows."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from helpers.backbones import small_net, some_images
from tta.methods import Tent
from tta.methods.scaling import LossScale
from tta.objectives import EM, Objective

FP16 = functools.partial(torch.autocast, "cpu", torch.float16)


class Quick(LossScale):
    INTERVAL = 3


@settings(max_examples=40, deadline=None)
@given(pattern=st.lists(st.booleans(), min_size=1, max_size=14))
def test_the_factor_and_the_gradients_are_those_of_grad_scaler(pattern: list[bool]) -> None:
    ours, theirs = Quick(), GradScaler("cpu", growth_interval=Quick.INTERVAL)
    weights = [nn.Parameter(torch.linspace(-1, 1, 4)), nn.Parameter(torch.ones(2, 3))]
    optimizer = torch.optim.SGD(weights, lr=0.0)
    for finite in pattern:
        loss = sum((w.square() * torch.arange(1.0, 1 + w.numel()).view_as(w)).sum() for w in weights)
        assert isinstance(loss, Tensor)
        theirs.scale(loss).backward()
        gradients = [w.grad for w in weights if w.grad is not None]
        if not finite:
            gradients[1][0, 1] = torch.inf
        copies = [g.clone() for g in gradients]
        theirs.unscale_(optimizer)
        theirs.step(optimizer)
        theirs.update()
        ours.unscale(copies)
        assert bool(ours.sound) == finite
        assert ours.scale == theirs.get_scale()
        for copy, gradient in zip(copies, gradients, strict=True):
            assert torch.equal(copy, gradient if finite else torch.zeros_like(copy))
        optimizer.zero_grad()


class Faint(Objective):
    """An objective whose gradients are too small for float16."""

    def loss(self, logits: Tensor) -> Tensor:
        return EM()(logits.double()) * 1e-8


def gradients(scaled: bool, half: bool) -> list[Tensor]:
    """Gradients of the adapted parameters at Tent's first step."""
    torch.manual_seed(0)
    kept: list[Tensor] = []

    class Keeping(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            kept.extend(p.grad.clone() for group in self.param_groups for p in group["params"])

    method = Tent(small_net("batch"), Faint(), functools.partial(Keeping, lr=0.0))
    if not scaled:
        method.loss_scale.scale.fill_(1)
    with torch.autocast("cpu", torch.float16, enabled=half):
        method(some_images(8))
    return kept


def test_gradients_that_float16_alone_would_lose() -> None:
    exact = torch.cat([g.flatten() for g in gradients(scaled=False, half=False)])
    scaled = torch.cat([g.flatten() for g in gradients(scaled=True, half=True)])
    lost = torch.cat([g.flatten() for g in gradients(scaled=False, half=True)])
    assert exact.norm() > 0
    assert (scaled - exact).norm() < 0.02 * exact.norm()
    assert (lost - exact).norm() > 0.5 * exact.norm()


def tent() -> Tent:
    torch.manual_seed(0)
    return Tent(small_net("batch"), EM(), functools.partial(torch.optim.Adam, lr=0.1))


def adapted(method: Tent) -> list[Tensor]:
    return [p.detach().clone() for p in method.parameters() if p.requires_grad]


def test_an_overflow_leaves_out_the_step_and_halves_the_factor_and_reset_brings_it_back() -> None:
    method, images = tent(), some_images(8)
    method.reset()  # there is a state to go back to before the factor is changed
    first = method.loss_scale.scale.clone()
    before = adapted(method)
    method.loss_scale.scale.fill_(2.0**60)
    with FP16():
        method(images)
        assert all(torch.equal(a, b) for a, b in zip(adapted(method), before, strict=True))
        assert method.loss_scale.scale == 2.0**59
        assert not any(t.any() for state in method.optimizer.state.values() for t in state.values())
        method.loss_scale.scale.fill_(2.0**10)
        method(images)
    assert not torch.equal(adapted(method)[0], before[0])
    method.reset()
    assert method.loss_scale.scale == first


@pytest.mark.parametrize("dtype", [torch.bfloat16, None], ids=str)
def test_other_precisions_have_no_factor(dtype: torch.dtype | None) -> None:
    method, reference = tent(), tent()
    method.loss_scale.scale.fill_(torch.nan)
    for each in (method, reference):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            each(some_images(8))
    assert all(torch.equal(a, b) for a, b in zip(adapted(method), adapted(reference), strict=True))

"""Loss scaling under float16 autocast: gradients that float16 alone would lose, overflows, other precisions."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from helpers.backbones import small_net, some_images
from tta.methods import SAR, Method, Tent
from tta.objectives import EM, Objective

FP16 = functools.partial(torch.autocast, "cpu", torch.float16)


def set_scale(method: Method, scale: float) -> None:
    method.scaler.load_state_dict({**method.scaler.state_dict(), "scale": scale})


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
        set_scale(method, 1.0)
    with torch.autocast("cpu", torch.float16, enabled=half):
        method(some_images(8))
    return kept


def test_scaling__keeps_gradients_float16_loses() -> None:
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


def test_overflow__skips_the_step_and_halves_the_scale() -> None:
    method, images = tent(), some_images(8)
    method.reset()  # there is a state to go back to before the factor is changed
    first = method.scaler.get_scale()
    before = adapted(method)
    set_scale(method, 2.0**60)
    with FP16():
        method(images)
        assert all(torch.equal(a, b) for a, b in zip(adapted(method), before, strict=True))
        assert method.scaler.get_scale() == 2.0**59
        assert not any(t.any() for state in method.optimizer.state.values() for t in state.values())
        set_scale(method, 2.0**10)
        method(images)
    assert not torch.equal(adapted(method)[0], before[0])
    method.reset()
    assert method.scaler.get_scale() == first


@pytest.mark.parametrize("dtype", [torch.bfloat16, None], ids=str)
def test_scaling__only_under_float16(dtype: torch.dtype | None) -> None:
    method, reference = tent(), tent()
    set_scale(method, float("nan"))
    for each in (method, reference):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            each(some_images(8))
    assert all(torch.equal(a, b) for a, b in zip(adapted(method), adapted(reference), strict=True))


def test_overflow__in_sars_first_pass_halves_the_scale() -> None:
    """Otherwise no sample would ever be reliable at the moved weights, and the scale would stay too large."""
    method = SAR(small_net("batch"), EM(), functools.partial(torch.optim.SGD, lr=0.1), margin=1.0)
    before = [p.detach().clone() for p in method.parameters() if p.requires_grad]
    set_scale(method, 2.0**60)
    with FP16():
        assert method(some_images(8)).isfinite().all()
        assert method.scaler.get_scale() == 2.0**59
        after = [p.detach().clone() for p in method.parameters() if p.requires_grad]
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
        set_scale(method, 2.0**10)
        method(some_images(8))
    after = [p.detach().clone() for p in method.parameters() if p.requires_grad]
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))

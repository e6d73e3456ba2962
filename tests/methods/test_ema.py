"""Means over selected samples and moving averages."""

from __future__ import annotations

import torch

from tta.methods.common.ema import ema_update_
from tta.methods.common.losses import selected_mean


def test_selected_mean__ignores_infinity_elsewhere() -> None:
    losses = torch.tensor([1.0, torch.nan, 3.0, torch.inf], requires_grad=True)
    mean = selected_mean(losses, torch.tensor([True, False, True, False]))
    (gradient,) = torch.autograd.grad(mean, losses)
    assert mean == 2
    assert gradient.tolist() == [0.5, 0, 0.5, 0]


def test_selected_mean__of_nothing_is_zero() -> None:
    losses = torch.ones(3, requires_grad=True)
    mean = selected_mean(losses, torch.zeros(3, dtype=torch.bool))
    assert mean == 0
    assert torch.autograd.grad(mean, losses)[0].tolist() == [0, 0, 0]


def test_average__moves_by_its_share() -> None:
    average, new = [torch.zeros(2), torch.ones(1)], [torch.ones(2), torch.full((1,), 3.0)]
    ema_update_(average, new, 0.25)
    assert average[0].tolist() == [0.25, 0.25]
    assert average[1].item() == 1.5

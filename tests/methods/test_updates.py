"""Updates under a condition on the device: the same as an if on the host."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tta.methods.updates import average_, restore_where, selected_mean, step_where

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
}


def two_parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.linspace(-1, 1, 4)), torch.nn.Parameter(torch.ones(2, 3))]


@settings(max_examples=15)
@given(pattern=st.lists(st.booleans(), min_size=1, max_size=5))
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_step_where__is_a_step_under_an_if(name: str, pattern: list[bool]) -> None:
    masked, plain = two_parameters(), two_parameters()
    optimizers = OPTIMIZERS[name](masked), OPTIMIZERS[name](plain)
    for number, condition in enumerate(pattern):
        for parameter in (*masked, *plain):
            parameter.grad = torch.cos(parameter.detach() * (number + 1))
        step_where(torch.tensor(condition), optimizers[0])
        if condition:
            optimizers[1].step()
        assert all(torch.equal(a, b) for a, b in zip(masked, plain, strict=True))


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_restore_where__forgets_moments_too(name: str, condition: bool) -> None:
    parameters = two_parameters()
    initial = [p.detach().clone() for p in parameters]
    optimizer = OPTIMIZERS[name](parameters)

    def step() -> None:
        for parameter in parameters:
            parameter.grad = parameter.detach() + 1
        optimizer.step()

    step()
    first = [p.detach().clone() for p in parameters]
    step()
    second, state = [p.detach().clone() for p in parameters], copy.deepcopy(optimizer.state_dict())
    restore_where(torch.tensor(condition), parameters, initial, optimizer)
    if condition:
        step()
        assert all(torch.equal(a, b) for a, b in zip(parameters, first, strict=True))
    else:
        assert all(torch.equal(a, b) for a, b in zip(parameters, second, strict=True))
        for index, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                assert value is None or torch.equal(value, state["state"][index][key])


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
    average_(average, new, 0.25)
    assert average[0].tolist() == [0.25, 0.25]
    assert average[1].item() == 1.5

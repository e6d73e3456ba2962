"""Objectives of several replicas at once are what each is by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tta.objectives import CADF, COME, DEM, EM, SLR, AdaDEM, Objective
from tta.replicas import objectives as stacked
from tta.replicas.objectives import each_of

KINDS: list[Callable[[], Objective]] = [
    *(EM, CADF, COME, SLR, AdaDEM, lambda: DEM(1.1, 1.2), lambda: DEM(0.5, 0.0), lambda: AdaDEM(momentum=0.5)),
    *(lambda: AdaDEM(calibrate=False), lambda: AdaDEM(normalize=False), lambda: AdaDEM(reward="entropy")),
    *(lambda: AdaDEM(norm="l2", alpha=0.7), lambda: AdaDEM(num_classes=7)),
]


@settings(deadline=None)
@given(
    kinds=st.lists(st.integers(0, len(KINDS) - 1), min_size=1, max_size=9),
    seed=st.integers(0, 99),
    forgotten=st.sets(st.integers(0, 8)),
)
def test_each_replica_has_the_losses_gradients_and_state_of_its_own_objective(
    kinds: list[int], seed: int, forgotten: set[int]
) -> None:
    alone, packed = ([KINDS[kind]() for kind in kinds] for _ in range(2))
    generator = torch.Generator().manual_seed(seed)
    for step in range(3):
        z = 3 * torch.randn(len(kinds), 6, 7, generator=generator)
        ones, others = (z.clone().requires_grad_() for _ in range(2))
        expected = [objective(row) for objective, row in zip(alone, ones, strict=True)]
        found = each_of(packed, list(others))
        for one, other in zip(expected, found, strict=True):
            assert isinstance(other, Tensor)
            torch.testing.assert_close(other, one)
        torch.stack(expected).sum().backward()
        torch.stack(found).sum().backward()  # type: ignore[arg-type]
        torch.testing.assert_close(others.grad, ones.grad)
        for one_objective, other_objective in zip(alone, packed, strict=True):
            torch.testing.assert_close(dict(other_objective.named_buffers()), dict(one_objective.named_buffers()))
        for number in forgotten & set(range(len(kinds))):
            if step == 1:
                alone[number].reset()
                packed[number].reset()


def test_objectives_of_one_kind_are_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, int]] = []
    forward = Objective.forward

    def counted(self: Objective, logits: Tensor) -> Tensor:
        called.append((type(self).__name__, logits.ndim))
        return forward(self, logits)

    monkeypatch.setattr(Objective, "forward", counted)
    objectives = [EM(), AdaDEM(), EM(), DEM(1, 1), AdaDEM(), DEM(1, 0.5), AdaDEM(alpha=2)]
    each_of(objectives, list(torch.randn(7, 4, 5)))
    assert sorted(called) == sorted([("EM", 3), ("AdaDEM", 3), ("AdaDEM", 2), ("DEM", 2), ("DEM", 2)])


class Counting(EM):
    """One of a user, with a state that nobody said could be stacked."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def loss(self, z: Tensor) -> Tensor:
        self.seen += 1
        return super().loss(z) + self.seen


class Weighted(EM):
    """One whose settings cannot be compared."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def loss(self, z: Tensor) -> Tensor:
        return super().loss(z * self.weights)


def test_what_cannot_be_stacked_is_called_for_each() -> None:
    objectives = [Counting(), Weighted(torch.ones(5)), Counting(), Weighted(torch.zeros(5))]
    logits = list(torch.randn(4, 3, 5))
    expected = [copy.deepcopy(objective)(z) for objective, z in zip(objectives, logits, strict=True)]
    found = each_of(objectives, logits)
    assert [bool(torch.equal(one, other)) for one, other in zip(expected, found, strict=True)] == [True] * 4  # type: ignore[arg-type]
    assert objectives[0].get_buffer("seen") == objectives[2].get_buffer("seen") == 1


def test_an_error_is_that_of_one_replica() -> None:
    broken = AdaDEM(num_classes=3)
    values = each_of([AdaDEM(), broken, EM(), AdaDEM()], list(torch.randn(4, 6, 5)))
    assert [type(value) for value in values] == [Tensor, ValueError, Tensor, Tensor]
    assert "use one objective for each model" in str(values[1])


def test_tables_of_other_shapes_are_not_stacked() -> None:
    few = [AdaDEM(), AdaDEM()]
    few[0](torch.randn(4, 5))
    assert not stacked._stackable(few)
    each_of(few, list(torch.randn(2, 4, 5)))
    assert stacked._stackable(few)

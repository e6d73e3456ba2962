"""Objectives, and a step of each on logits alone: what to time."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tta.objectives import CADF, COME, DEM, EM, SLR, AdaDEM, Objective


class LoopAdaDEM(AdaDEM):
    """AdaDEM whose table is updated class by class, as the paper writes it down: to compare with."""

    def _calibrator(self, p: Tensor) -> Tensor:
        self._allocate(p)
        labels = p.argmax(-1)
        for label in labels.unique():
            self.table[label].lerp_(p[labels == label].mean(0), self.momentum)
        return self.table[labels]


def candidates() -> dict[str, Callable[[], Objective]]:
    """Give what makes each objective, EM first."""
    return {
        "EM": EM,
        "CADF": CADF,
        "DEM(1.1, 1.2)": lambda: DEM(1.1, 1.2),
        "AdaDEM": AdaDEM,
        "AdaDEM-Norm": lambda: AdaDEM(calibrate=False),
        "AdaDEM-MEC": lambda: AdaDEM(normalize=False),
        "AdaDEM, a loop over the classes": LoopAdaDEM,
        "COME": COME,
        "SLR": SLR,
    }


def step_of(objective: Objective, z: Tensor) -> Callable[[], None]:
    """Make a function that does a forward and a backward pass of the objective on logits (N, C)."""

    def step() -> None:
        logits = z.detach().requires_grad_()
        objective(logits).mean().backward()

    return step

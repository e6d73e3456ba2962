"""Methods that predict from one forward pass, and learn, if at all, from the logits of that same pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tta.methods.base import Method
from tta.methods.graphs import CudaGraph, GraphedStep, Recorder
from tta.objectives import Objective


class Loss(NamedTuple):
    """What a batch is to be learnt from."""

    value: Tensor  # (): of the batch, in nats
    used: Tensor  # (): how many samples it is of


class OnePass(Method):
    """A step is: forward pass, loss, backward pass, update; or, without an optimizer, the forward pass alone.

    A subclass that learns makes an ``objective`` and an ``optimizer`` and implements ``loss``.
    """

    objective: Objective
    optimizer: Optimizer | None = None
    steps = 1
    """Updates per batch."""

    def __init__(self, backbone: nn.Module, window: int = 0) -> None:
        super().__init__(backbone, window)
        self._graphed: GraphedStep | None = None

    @property
    def simple(self) -> bool:
        """Whether a step is what is said above and no more, once for each batch."""
        kind = type(self)
        ways = {"forward": Method, "predict": Method, "step": OnePass, "learn": OnePass}
        own = any(getattr(kind, name) is not getattr(base, name) for name, base in ways.items())
        return not own and not self.window and self.steps == 1

    def capture(self, record: Recorder = CudaGraph) -> None:
        """Have each step be one CUDA graph, once all that it needs is made; see ``GraphedStep``.

        ``reset`` gives the optimizer a new state, and so the step is captured anew behind it.

        Args:
            record: makes the graph.

        Raises:
            ValueError: if a step is more than ``simple``.
        """
        if not self.simple:
            raise ValueError(not_captured(self))
        self._graphed = GraphedStep(self._in_full, record)
        self.captured = True

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """See ``Method``."""
        super().set_extra_state(state)
        if self._graphed is not None:
            self._graphed.forget()

    def step(self, images: Tensor) -> Tensor:
        """Predict, then update ``steps`` times."""
        if self._graphed is None:
            return self._forth_and_back(images)
        given = self._graphed(images)
        logits = given.pop("logits")
        self.report(**given)
        return logits

    def _in_full(self, images: Tensor) -> dict[str, Tensor]:
        """Step, and give all that comes of it."""
        logits = self._forth_and_back(images).detach()
        return {"logits": logits, **self.diagnostics}

    def _forth_and_back(self, images: Tensor) -> Tensor:
        if self.optimizer is None:
            return self.predict(images)
        for _ in range(self.steps):
            logits = self.backbone(images)
            loss = self.loss(logits, self.objective(logits))
            self.propagate(loss.value)
            self.learn(loss)
        return logits

    def loss(self, logits: Tensor, losses: Tensor) -> Loss:
        """Make one loss of the batch.

        Args:
            logits: (N, C).
            losses: (N,), what the objective gives for them.
        """
        raise NotImplementedError(f"{type(self).__name__} has an optimizer, and needs a loss for it")

    def learn(self, loss: Loss) -> None:
        """Follow the gradient, which the backward pass of the loss has left, and forget it."""
        assert self.optimizer is not None
        self.unscale(loss.value.device)
        self.follow(self.optimizer, loss.used)
        self.optimizer.zero_grad()
        self.report(loss=loss.value.detach(), used=loss.used)

    def follow(self, optimizer: Optimizer, used: Tensor) -> None:
        """Let the optimizer make its step, from the gradient of a loss of so many samples."""
        self.update(optimizer)


def capture(method: Method, device: torch.device) -> None:
    """Have each step of a method be one CUDA graph; see ``OnePass.capture``.

    Raises:
        ValueError: on another device than a GPU, or for a method whose steps no graph can hold.
    """
    if device.type != "cuda":
        raise ValueError(f"graph=true is for GPUs, and this run is on device={device}: run it with graph=false")
    if not isinstance(method, OnePass):
        raise ValueError(not_captured(method))
    method.capture()


def not_captured(method: Method) -> str:
    """Say why no graph can hold the steps of a method."""
    return (
        f"graph=true captures one forward pass, one backward pass and one update; a step of {type(method).__name__} is "
        "more than that, as it is configured: run it with graph=false"
    )

"""Methods that predict from one forward pass, and learn, if at all, from the logits of that same pass."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from tta.methods.base import Method
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

    def step(self, images: Tensor) -> Tensor:
        """Predict, then update ``steps`` times."""
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

"""``SmallNet("batch")`` and the objectives once more, in the plainest torch: the other route of the parity tests.

Nothing here comes from the package. Whatever adapts is given by name, and gradients are autograd's on these formulas.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def logits(w: Weights, x: Tensor) -> Tensor:
    """Classify with the statistics of the batch."""

    def norm(h: Tensor, layer: str) -> Tensor:
        mean = h.mean((0, 2, 3), keepdim=True)
        variance = ((h - mean) ** 2).mean((0, 2, 3), keepdim=True)
        gamma, beta = w[f"{layer}.weight"][:, None, None], w[f"{layer}.bias"][:, None, None]
        return (h - mean) / (variance + 1e-5).sqrt() * gamma + beta

    h = norm(F.conv2d(x, w["body.0.weight"], w["body.0.bias"], padding=1), "body.1").relu()
    h = norm(F.conv2d(h, w["body.3.weight"], w["body.3.bias"], stride=2), "body.4").relu()
    return h.mean((2, 3)) @ w["head.weight"].T + w["head.bias"]


def probabilities(z: Tensor) -> Tensor:
    """Of one sample: (C,)."""
    return z.exp() / z.exp().sum()


def entropy(z: Tensor) -> Tensor:
    """Of one sample's prediction, in nats."""
    p = probabilities(z)
    return -sum((p[i] * p[i].log() for i in range(len(p))), torch.zeros(()))


class Entropy:
    """Entropy minimisation."""

    def __call__(self, z: Tensor) -> list[Tensor]:
        return [entropy(sample) for sample in z]


class AdaDEM:
    """Equation 12 of arXiv:2511.03256 and its calibrator."""

    def __init__(self) -> None:
        self.table = [[1 / 5] * 5 for _ in range(5)]

    def __call__(self, z: Tensor) -> list[Tensor]:
        values, classes = [sample.tolist() for sample in z.detach()], range(z.shape[1])
        ps = [probabilities(sample).tolist() for sample in z.detach()]
        labels = [p.index(max(p)) for p in ps]
        for k in set(labels):
            members = [p for p, label in zip(ps, labels, strict=True) if label == k]
            for i in classes:
                self.table[k][i] = 0.9 * self.table[k][i] + 0.1 * sum(p[i] for p in members) / len(members)
        losses = []
        for n, k in enumerate(labels):
            t = -sum(ps[n][i] * values[n][i] for i in classes)
            delta = sum(abs(ps[n][i] * (values[n][i] + t + 1)) for i in classes)
            p = probabilities(z[n])
            losses.append(sum((-(p[i] - self.table[k][i]) / delta * z[n, i] for i in classes), torch.zeros(())))
        return losses


def mean_gradient(losses: list[Tensor], chosen: list[int], parameters: list[Tensor]) -> list[Tensor]:
    """Gradient of the mean over the chosen samples, zeros if there are none."""
    if not chosen:
        return [torch.zeros_like(parameter) for parameter in parameters]
    loss = sum((losses[n] for n in chosen), torch.zeros(())) / len(chosen)
    return list(torch.autograd.grad(loss, parameters, retain_graph=True))


class Momentum:
    """Stochastic gradient descent with momentum, without dampening."""

    def __init__(self, lr: float, momentum: float) -> None:
        self.lr, self.momentum = lr, momentum
        self.velocity: list[Tensor] | None = None

    def step(self, parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """Return the parameters after the step."""
        old = self.velocity or [torch.zeros_like(gradient) for gradient in gradients]
        self.velocity = [self.momentum * v + g for v, g in zip(old, gradients, strict=True)]
        return [p - self.lr * v for p, v in zip(parameters, self.velocity, strict=True)]


def norm_length(gradients: list[Tensor]) -> float:
    """Length of all gradients together."""
    return math.sqrt(sum(float(value) ** 2 for gradient in gradients for value in gradient))

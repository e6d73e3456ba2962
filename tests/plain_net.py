"""``SmallNet("batch")`` and SGD written out on dictionaries of tensors, to recompute a method from its paper."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

Weights = dict[str, Tensor]
Normalise = Callable[[str, Tensor], Tensor]


def weights_of(module: nn.Module) -> Weights:
    """Copies of the parameters."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def channels(values: Tensor) -> Tensor:
    return values[None, :, None, None]


def batch_statistics(layer: str, h: Tensor) -> Tensor:
    """Normalise with mean and variance of the batch."""
    mean = h.mean((0, 2, 3))
    return (h - channels(mean)) / channels((h - channels(mean)).square().mean((0, 2, 3)) + 1e-5).sqrt()


def classify(w: Weights, x: Tensor, normalise: Normalise = batch_statistics) -> Tensor:
    """Logits (N, C) of images (N, 3, H, W)."""
    for conv, norm, stride, padding in (("body.0", "body.1", 1, 1), ("body.3", "body.4", 2, 0)):
        x = conv2d(x, w[f"{conv}.weight"], w[f"{conv}.bias"], stride, padding)
        x = normalise(norm, x) * channels(w[f"{norm}.weight"]) + channels(w[f"{norm}.bias"])
        x = x.clamp(min=0)
    return x.mean((2, 3)) @ w["head.weight"].T + w["head.bias"]


def soft(z: Tensor) -> Tensor:
    return z.exp() / z.exp().sum(-1, keepdim=True)


class PlainSGD:
    """Weights that follow gradients with momentum; those that are not named stay."""

    def __init__(self, weights: Weights, names: list[str], lr: float, momentum: float) -> None:
        self.weights, self.names, self.lr, self.momentum = weights, names, lr, momentum
        self.velocity = {name: torch.zeros_like(weights[name]) for name in names}

    def leaves(self) -> Weights:
        """The weights, as the leaves of a graph."""
        return {name: w.clone().requires_grad_(name in self.names) for name, w in self.weights.items()}

    def step(self, loss: Tensor, leaves: Weights) -> None:
        gradients = torch.autograd.grad(loss, [leaves[name] for name in self.names])
        for name, gradient in zip(self.names, gradients, strict=True):
            self.velocity[name] = self.momentum * self.velocity[name] + gradient
            self.weights[name] = self.weights[name] - self.lr * self.velocity[name]

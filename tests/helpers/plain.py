"""``SmallNet("batch")`` and what methods do with it once more, in plain torch: the other route of the parity tests.

Nothing here comes from the package, and gradients are autograd's on these formulas.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

Weights = dict[str, Tensor]
Moments = tuple[Tensor, Tensor]  # mean and variance of each channel
Statistics = Callable[[str, Tensor], Moments]  # what the layer of this name takes for the moments of its input

NORM = [f"body.{layer}.{kind}" for layer in (1, 4) for kind in ("weight", "bias")]


def weights_of(net: nn.Module) -> Weights:
    """Copies of the parameters."""
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def adapted_of(method: nn.Module) -> Weights:
    """Copies of what a method's own copy of the backbone holds, from its saved state."""
    state = method.state_dict()
    names = [name for name in state if name.startswith("backbone.")]
    return {name.removeprefix("backbone."): state[name].detach().clone() for name in names}


def moved(method: nn.Module, before: Weights) -> set[str]:
    """Names of what has changed in the copy of the backbone, if only by a bit."""
    found = adapted_of(method)
    return {name for name, value in before.items() if not torch.equal(found[name], value)}


def assert_adapted(method: nn.Module, expected: Weights) -> None:
    """Assert that a method has come to these weights."""
    found = adapted_of(method)
    torch.testing.assert_close({name: found[name] for name in expected}, expected, rtol=1e-6, atol=1e-9)


def running_of(net: nn.Module) -> dict[str, Moments]:
    """Copies of the running statistics of each normalisation layer."""
    return {
        layer: (net.get_buffer(f"{layer}.running_mean").clone(), net.get_buffer(f"{layer}.running_var").clone())
        for layer in ("body.1", "body.4")
    }


def moments(h: Tensor, unbiased: bool = False) -> Moments:
    values = h.transpose(0, 1).flatten(1)
    mean = values.sum(1) / values.shape[1]
    return mean, ((values - mean[:, None]) ** 2).sum(1) / (values.shape[1] - unbiased)


def mixed(running: dict[str, Moments], share: float, unbiased: bool = False) -> Statistics:
    """The batch's moments by this share, and for the rest the running ones, as they are when a layer asks."""

    def statistics(layer: str, h: Tensor) -> Moments:
        (mean, var), (batch_mean, batch_var) = running[layer], moments(h, unbiased)
        return (1 - share) * mean + share * batch_mean, (1 - share) * var + share * batch_var

    return statistics


def forward(w: Weights, x: Tensor, statistics: Statistics) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and features (N, D) of images (N, 3, H, W)."""
    for conv, norm, stride, padding in (("body.0", "body.1", 1, 1), ("body.3", "body.4", 2, 0)):
        x = conv2d(x, w[f"{conv}.weight"], w[f"{conv}.bias"], stride, padding)
        mean, var = statistics(norm, x)
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        x = (w[f"{norm}.weight"][:, None, None] * x + w[f"{norm}.bias"][:, None, None]).clamp(min=0)
    features = x.mean((2, 3))
    return features @ w["head.weight"].T + w["head.bias"], features


def classify(w: Weights, x: Tensor, statistics: Statistics = lambda _, h: moments(h)) -> Tensor:
    """Logits, with the statistics of the batch unless told otherwise."""
    return forward(w, x, statistics)[0]


def soft(z: Tensor) -> Tensor:
    return z.exp() / z.exp().sum(-1, keepdim=True)


def entropy(z: Tensor) -> Tensor:
    """Of the predictions with these logits, in nats."""
    return -(soft(z) * soft(z).log()).sum(-1)


class PlainAdaDEM:
    """Equation 12 of arXiv:2511.03256 and its calibrator, for each sample of a batch."""

    def __init__(self) -> None:
        self.table = torch.full((5, 5), 1 / 5, dtype=torch.float64)

    def __call__(self, z: Tensor) -> Tensor:
        p, values = soft(z).detach(), z.detach()
        labels = p.argmax(1)
        for k in set(labels.tolist()):
            self.table[k] = 0.9 * self.table[k] + 0.1 * p[labels == k].mean(0)
        t = -(p * values).sum(1, keepdim=True)
        delta = (p * (values + t + 1)).abs().sum(1, keepdim=True)
        return (-(soft(z) - self.table[labels]) / delta * z).sum(1)


def gradients(loss: Tensor, leaves: Weights, names: list[str]) -> Weights:
    return dict(zip(names, torch.autograd.grad(loss, [leaves[name] for name in names]), strict=True))


class PlainSGD:
    """Weights that follow gradients with momentum; those that are not named stay."""

    def __init__(self, weights: Weights, names: list[str], lr: float, momentum: float) -> None:
        self.weights, self.names, self.lr, self.momentum = weights, names, lr, momentum
        self.velocity = {name: torch.zeros_like(weights[name]) for name in names}

    def leaves(self) -> Weights:
        """The weights, as the leaves of a graph."""
        return {name: w.clone().requires_grad_(name in self.names) for name, w in self.weights.items()}

    def step(self, loss: Tensor, leaves: Weights) -> None:
        """Move the weights by the gradient at the leaves."""
        for name, gradient in gradients(loss, leaves, self.names).items():
            self.velocity[name] = self.momentum * self.velocity[name] + gradient
            self.weights[name] = self.weights[name] - self.lr * self.velocity[name]

"""ETA, EATA and RDumb as their papers and field notes have them, sample by sample, without a line of tta."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from backbones_for_tests import SmallNet

NAMES = [f"body.{layer}.{kind}" for layer in (1, 4) for kind in ("weight", "bias")]


def varied_images(n: int = 8, seed: int = 0) -> Tensor:
    """Images of a colour each, with noise: predictions of several classes, sure ones and unsure ones."""
    generator = torch.Generator().manual_seed(seed)
    colours, noise = torch.rand(n, 3, 1, 1, generator=generator), torch.rand(n, 3, 8, 8, generator=generator)
    return 0.6 * colours + 0.4 * noise


def plain_logits(w: dict[str, Tensor], theta: Sequence[Tensor], x: Tensor) -> Tensor:
    """``SmallNet("batch")`` with statistics of the batch; ``theta`` are its scales and shifts."""

    def norm(h: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        mean = h.mean((0, 2, 3), keepdim=True)
        var = ((h - mean) ** 2).mean((0, 2, 3), keepdim=True)
        return (h - mean) / (var + 1e-5).sqrt() * gamma[:, None, None] + beta[:, None, None]

    h = torch.nn.functional.conv2d(x, w["body.0.weight"], w["body.0.bias"], padding=1)
    h = torch.nn.functional.conv2d(norm(h, *theta[:2]).clamp(min=0), w["body.3.weight"], w["body.3.bias"], stride=2)
    return norm(h, *theta[2:]).clamp(min=0).mean((2, 3)) @ w["head.weight"].T + w["head.bias"]


def plain_probabilities(z: Tensor) -> Tensor:
    return z.exp() / z.exp().sum()


def plain_entropy(z: Tensor) -> Tensor:
    p = plain_probabilities(z)
    return -(p * p.log()).sum()


class PlainETA:
    """One SGD step per batch on the weighted losses of samples that are sure and unlike those before.

    ``dropped`` counts, for each batch, samples above the entropy margin, samples too much like the average, and those
    that are left.
    """

    def __init__(
        self,
        net: SmallNet,
        margin: float,
        diversity: float,
        objective: Callable[[Tensor], Tensor] = plain_entropy,
        lr: float = 0.05,
        momentum: float = 0.9,
        fisher: Sequence[Tensor] | None = None,
        alpha: float = 0.0,
    ) -> None:
        self.w = {name: p.detach().double() for name, p in net.named_parameters()}
        self.theta = [self.w[name].clone() for name in NAMES]
        self.source = [t.clone() for t in self.theta]
        self.velocity: list[Tensor] | None = None
        self.m: Tensor | None = None
        self.margin, self.diversity, self.objective = margin, diversity, objective
        self.lr, self.momentum = lr, momentum
        self.fisher, self.alpha = fisher, alpha
        self.dropped: list[tuple[int, int, int]] = []

    def step(self, x: Tensor) -> Tensor:
        theta = [t.clone().requires_grad_() for t in self.theta]
        z = plain_logits(self.w, theta, x)
        limit = self.margin * math.log(z.shape[1])
        losses, kept, unsure, alike = [], [], 0, 0
        for row in z:
            p, entropy = plain_probabilities(row).detach(), float(plain_entropy(row.detach()))
            if not entropy < limit:
                unsure += 1
                continue
            if self.m is not None:
                cosine = float((self.m * p).sum()) / (float((self.m**2).sum()) * float((p**2).sum())) ** 0.5
                if not abs(cosine) < self.diversity:
                    alike += 1
                    continue
            losses.append(math.exp(limit - entropy) * self.objective(row))
            kept.append(p)
        self.dropped.append((unsure, alike, len(kept)))
        if kept:
            self._descend(theta, sum(losses[1:], losses[0]) / len(losses))
            mean = sum(kept[1:], kept[0]) / len(kept)
            self.m = mean if self.m is None else 0.9 * self.m + 0.1 * mean
        return z.detach()

    def _descend(self, theta: list[Tensor], loss: Tensor) -> None:
        if self.fisher is not None:
            for f, t, start in zip(self.fisher, theta, self.source, strict=True):
                loss = loss + self.alpha * (f * (t - start) ** 2).sum()
        gradient = torch.autograd.grad(loss, theta)
        if self.velocity is None:
            self.velocity = list(gradient)
        else:
            self.velocity = [self.momentum * v + g for v, g in zip(self.velocity, gradient, strict=True)]
        self.theta = [t - self.lr * v for t, v in zip(self.theta, self.velocity, strict=True)]


def plain_fisher(net: SmallNet, batches: Sequence[Tensor]) -> list[Tensor]:
    """Mean over batches (float, in [0, 1]) of the squared gradient of each batch's mean loss on its own predictions."""
    w = {name: p.detach().double() for name, p in net.named_parameters()}
    theta = [w[name].clone().requires_grad_() for name in NAMES]
    total = [torch.zeros_like(t) for t in theta]
    for x in batches:
        z = plain_logits(w, theta, x)
        loss = torch.zeros(())
        for row in z:
            loss = loss - plain_probabilities(row)[int(row.argmax())].log() / len(z)
        for t, g in zip(total, torch.autograd.grad(loss, theta), strict=True):
            t += g.detach() ** 2 / len(batches)
    return total

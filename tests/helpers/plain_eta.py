"""ETA, EATA and RDumb as their papers and field notes have them, sample by sample, without a line of tta."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from helpers.backbones import SmallNet
from helpers.plain import NORM, PlainSGD, Weights, classify, entropy, gradients, soft, weights_of


class PlainETA:
    """One SGD step per batch on the weighted losses of samples that are sure and unlike those before.

    ``dropped`` counts, for each batch, samples above the entropy margin, samples too much like the average, and those
    that are left; ``loss`` is that of the last batch that had any.
    """

    def __init__(
        self,
        net: SmallNet,
        margin: float,
        diversity: float,
        objective: Callable[[Tensor], Tensor] = entropy,
        fisher: Weights | None = None,
        alpha: float = 0.0,
        momentum: float = 0.1,
    ) -> None:
        self.weights, self.source = weights_of(net), weights_of(net)
        self.optimizer = PlainSGD(self.weights, NORM, 0.05, 0.9)
        self.m: Tensor | None = None
        self.margin, self.diversity, self.objective = margin, diversity, objective
        self.fisher, self.alpha, self.momentum = fisher or {}, alpha, momentum
        self.loss = 0.0
        self.dropped: list[tuple[int, int, int]] = []

    def step(self, x: Tensor) -> Tensor:
        leaves = self.optimizer.leaves()
        z = classify(leaves, x)
        limit = self.margin * math.log(z.shape[1])
        objectives = self.objective(z)  # one with state learns from all samples, whichever are used
        losses, kept, unsure, alike = [], [], 0, 0
        for row, objective in zip(z, objectives, strict=True):
            p, h = soft(row).detach(), float(entropy(row.detach()))
            if not h < limit:
                unsure += 1
                continue
            if self.m is not None:
                cosine = float((self.m * p).sum()) / (float((self.m**2).sum()) * float((p**2).sum())) ** 0.5
                if not abs(cosine) < self.diversity:
                    alike += 1
                    continue
            losses.append(math.exp(limit - h) * objective)
            kept.append(p)
        self.dropped.append((unsure, alike, len(kept)))
        if kept:
            loss = sum(losses[1:], losses[0]) / len(losses)
            for name, f in self.fisher.items():
                loss = loss + self.alpha * (f * (leaves[name] - self.source[name]) ** 2).sum()
            self.loss = float(loss.detach())
            self.optimizer.step(loss, leaves)
            mean = sum(kept[1:], kept[0]) / len(kept)
            self.m = mean if self.m is None else (1 - self.momentum) * self.m + self.momentum * mean
        return z.detach()


def plain_fisher(net: SmallNet, batches: Sequence[Tensor]) -> Weights:
    """Mean over batches (float, in [0, 1]) of the squared gradient of each batch's mean loss on its own predictions."""
    leaves = {name: p.requires_grad_(name in NORM) for name, p in weights_of(net).items()}
    total = {name: torch.zeros_like(leaves[name]) for name in NORM}
    for x in batches:
        loss = -sum((row[int(row.argmax())].log() for row in soft(classify(leaves, x))), torch.zeros(())) / len(x)
        for name, gradient in gradients(loss, leaves, NORM).items():
            total[name] += gradient**2 / len(batches)
    return total

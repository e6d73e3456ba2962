"""Objectives in float64 NumPy and plain loops, written from the papers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logsumexp(z: Array) -> Array:
    return np.log(np.exp(z).sum(-1))


def entropy(z: Array) -> tuple[Array, Array]:
    """Entropy of each prediction and its gradient with respect to the logits."""
    p = softmax(z)
    h = -(p * np.log(p)).sum(1)
    return h, -p * (np.log(p) + h[:, None])


def dem(z: Array, tau: float, alpha: float) -> tuple[Array, Array]:
    """Losses of equation 11 of arXiv:2511.03256 and their gradient."""
    q, p = softmax(z / tau), softmax(z)
    mean = (q * z).sum(1, keepdims=True)
    return -mean[:, 0] + alpha * logsumexp(z), -q - q * (z - mean) / tau + alpha * p


def opinion_entropy(z: Array) -> Array:
    """Entropy of COME's subjective opinion: beliefs of all classes and the uncertainty."""
    c = z.shape[1]
    strength = np.exp(z).sum(1) + c
    belief, uncertainty = np.exp(z) / strength[:, None], c / strength
    return -(belief * np.log(belief)).sum(1) - uncertainty * np.log(uncertainty)


def mean_log_ratio(z: Array) -> Array:
    """SLR with its clip at 0.99 and epsilon of 1e-5, term by term."""
    losses = np.zeros(len(z))
    for row, p in enumerate(softmax(z)):
        for pi in p:
            cut = min(pi, 0.99)
            losses[row] -= cut * math.log(cut / (1 - cut) + 1e-5)
    return losses


def slopes(f: Callable[[Array], Array], z: Array) -> Array:
    """Central differences of a loss per sample (N,) with respect to its logits (N, C)."""
    gradient = np.zeros_like(z)
    for i in range(z.shape[1]):
        step = np.zeros(z.shape[1])
        step[i] = 1e-5
        gradient[:, i] = (f(z + step) - f(z - step)) / 2e-5
    return gradient


class PaperAdaDEM:
    """The algorithm of arXiv:2511.03256, sample by sample and class by class."""

    def __init__(
        self,
        classes: int,
        normalize: bool = True,
        calibrate: bool = True,
        momentum: float = 0.1,
        alpha: float = 1.0,
        norm: str = "l1",
        reward: str = "cadf",
    ) -> None:
        self.table = np.full((classes, classes), 1 / classes)
        self.normalize, self.calibrate, self.momentum, self.alpha = normalize, calibrate, momentum, alpha
        self.order = {"l1": 1, "l2": 2, "linf": np.inf}[norm]
        self.reward = reward

    def __call__(self, z: Array) -> tuple[Array, Array]:
        """Return the losses and the gradient of their sum."""
        p = softmax(z)
        labels = p.argmax(1)
        for k in set(labels.tolist()):
            mean = p[labels == k].mean(0)
            self.table[k] = (1 - self.momentum) * self.table[k] + self.momentum * mean
        losses, gradients = [], []
        for zi, pi, k in zip(z, p, labels, strict=True):
            m = self.alpha * (self.table[k] if self.calibrate else pi)
            t = -(pi * zi).sum()
            reward = pi * (zi + t + 1)
            h = -(pi * np.log(pi)).sum()
            measured = reward if self.reward == "cadf" else pi * (np.log(pi) + h)
            delta = np.linalg.norm(measured, self.order) if self.normalize else 1.0
            losses.append(-((pi - m) / delta * zi).sum())
            gradients.append((m - reward) / delta)
        return np.array(losses), np.array(gradients)

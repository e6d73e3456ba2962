"""Metrics of predictions made at arrival time. Everything accumulates on the device, without waiting for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CALIBRATION_BINS = 15


class BatchCounts(NamedTuple):
    """What a batch adds, as scalar tensors on the device."""

    correct: Tensor  # int64
    entropy: Tensor  # float32: mean over the batch, in nats
    finite: Tensor  # bool: no logit is NaN or infinite


class DomainMetrics:
    """Metrics over one visit of a domain.

    Args:
        num_classes: C.
        device: of the logits and labels to come.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.labels = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.predicted = torch.zeros_like(self.labels)
        self.hits = torch.zeros_like(self.labels)
        self._confidence: list[Tensor] = []
        self._correct: list[Tensor] = []

    def update(self, logits: Tensor, labels: Tensor) -> BatchCounts:
        """Take in logits (N, C) and labels (N,)."""
        log_p = logits.float().log_softmax(-1)
        p = log_p.exp()
        confidence, predicted = p.max(-1)
        correct = predicted == labels
        ones = torch.ones_like(labels)
        self.labels.scatter_add_(0, labels, ones)
        self.predicted.scatter_add_(0, predicted, ones)
        self.hits.scatter_add_(0, labels, correct.long())
        self._confidence.append(confidence)
        self._correct.append(correct)
        return BatchCounts(correct.sum(), -(p * log_p).sum(-1).mean(), logits.isfinite().all())

    def compute(self) -> dict[str, float]:
        """Number of images ``n``, ``accuracy`` and ``calibration_error``, both in [0, 1].

        The calibration error is the expected one of the top label (arXiv:1706.04599), over 15 bins of equal width.
        """
        from torchmetrics.functional.classification import binary_calibration_error

        total = int(self.labels.sum())
        # torchmetrics compares a probability with the outcome it stands for: here "the top label is right".
        # It gives 1.0 a bin of its own; a hair less belongs to the last of the 15.
        error = binary_calibration_error(
            torch.cat(self._confidence).clamp(0, 1 - torch.finfo(torch.float32).eps),
            torch.cat(self._correct).long(),
            n_bins=CALIBRATION_BINS,
            norm="l1",
            validate_args=False,
        )
        return {"n": total, "accuracy": int(self.hits.sum()) / total, "calibration_error": float(error)}

    def classes(self) -> list[tuple[int, int, int]]:
        """For each class: images labelled with it, images predicted as it, and images of it predicted rightly."""
        return list(zip(self.labels.tolist(), self.predicted.tolist(), self.hits.tolist(), strict=True))

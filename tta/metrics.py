"""Metrics of predictions made at arrival time. Everything accumulates on the device, without waiting for it."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Metrics over one visit of a domain, or of several that are mixed together, of each apart.

    Args:
        num_classes: C.
        device: of the logits and labels to come.
        domains: how many are mixed.
    """

    def __init__(self, num_classes: int, device: torch.device, domains: int = 1) -> None:
        self.num_classes = num_classes
        self.labels = torch.zeros(domains * num_classes, dtype=torch.int64, device=device)
        self.predicted = torch.zeros_like(self.labels)
        self.hits = torch.zeros_like(self.labels)
        self.entropy = torch.zeros(domains, dtype=torch.float64, device=device)
        self._confidence: list[Tensor] = []
        self._correct: list[Tensor] = []
        self._member: list[Tensor] = []

    def update(self, logits: Tensor, labels: Tensor, member: Tensor | None = None) -> BatchCounts:
        """Take in logits (N, C) and labels (N,); ``member`` (N,) is the number of each image's domain, by default 0."""
        log_p = logits.float().log_softmax(-1)
        p = log_p.exp()
        confidence, predicted = p.max(-1)
        correct = predicted == labels
        entropy = -(p * log_p).sum(-1)
        mean_entropy = entropy.mean()
        if member is None:
            first: Tensor | int = 0
            self.entropy += len(labels) * mean_entropy.double()
        else:
            first = member * self.num_classes
            self.entropy.index_add_(0, member, entropy.double())
            self._member.append(member)
        ones = torch.ones_like(labels)
        self.labels.scatter_add_(0, first + labels, ones)
        self.predicted.scatter_add_(0, first + predicted, ones)
        self.hits.scatter_add_(0, first + labels, correct.long())
        self._confidence.append(confidence)
        self._correct.append(correct)
        return BatchCounts(correct.sum(), mean_entropy, logits.isfinite().all())

    def state(self) -> dict[str, Tensor]:
        """What ``load_state`` continues from."""
        lists = {name: torch.cat(values) for name, values in self._lists().items() if values}
        return {"labels": self.labels, "predicted": self.predicted, "hits": self.hits, "entropy": self.entropy, **lists}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what ``state`` gave of metrics of as many classes and domains."""
        for name, counted in vars(self).items():
            if isinstance(counted, Tensor):
                counted.copy_(state[name])
        for name, values in self._lists().items():
            values[:] = [state[name].to(self.labels.device)] if name in state else []

    def _lists(self) -> dict[str, list[Tensor]]:
        return {"confidence": self._confidence, "correct": self._correct, "member": self._member}

    def images(self, number: int = 0) -> int:
        """How many images of a domain were taken in."""
        return int(self._of(self.labels, number).sum())

    def compute(self, number: int = 0) -> dict[str, float]:
        """Of a domain: images ``n``, ``accuracy`` and ``calibration_error``, in [0, 1], and mean ``entropy``, in nats.

        The calibration error is the expected one of the top label (arXiv:1706.04599), over 15 bins of equal width.
        """
        from torchmetrics.functional.classification import binary_calibration_error

        total = self.images(number)
        confidence, correct = torch.cat(self._confidence), torch.cat(self._correct)
        if self._member:
            mine = torch.cat(self._member) == number
            confidence, correct = confidence[mine], correct[mine]
        # torchmetrics compares a probability with the outcome it stands for: here "the top label is right".
        # It gives 1.0 a bin of its own; a hair less belongs to the last of the 15.
        error = binary_calibration_error(
            confidence.clamp(0, 1 - torch.finfo(torch.float32).eps),
            correct.long(),
            n_bins=CALIBRATION_BINS,
            norm="l1",
            validate_args=False,
        )
        return {
            "n": total,
            "accuracy": int(self._of(self.hits, number).sum()) / total,
            "calibration_error": float(error),
            "entropy": float(self.entropy[number]) / total,
        }

    def classes(self, number: int = 0) -> list[tuple[int, int, int]]:
        """Of each class in a domain: images labelled with it, predicted as it, and of it predicted rightly."""
        counts = (self._of(table, number).tolist() for table in (self.labels, self.predicted, self.hits))
        return list(zip(*counts, strict=True))

    def _of(self, table: Tensor, number: int) -> Tensor:
        return table[number * self.num_classes : (number + 1) * self.num_classes]

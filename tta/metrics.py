"""Metrics of predictions made at arrival time. Everything is kept on the device, without waiting for it."""

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

    What each image came to is kept as it is, and counted when somebody asks.

    Args:
        num_classes: C.
        device: of the logits and labels to come.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.device = device
        self._kept: dict[str, list[Tensor]] = {}

    def update(self, logits: Tensor, labels: Tensor, domain_index: Tensor | None = None) -> BatchCounts:
        """Take in a batch.

        Args:
            logits: (N, C).
            labels: (N,).
            domain_index: (N,), the number of each image's domain; by default 0.
        """
        log_p = logits.float().log_softmax(-1)
        p = log_p.exp()
        confidence, predicted = p.max(-1)
        entropy = -(p * log_p).sum(-1)
        correct = predicted == labels
        images = {"labels": labels, "predicted": predicted, "correct": correct, "domain_index": domain_index}
        images |= {"confidence": confidence, "entropy": entropy}
        for name, values in images.items():
            if values is not None:
                self._kept.setdefault(name, []).append(values)
        return BatchCounts(correct.sum(), entropy.mean(), logits.isfinite().all())

    def state(self) -> dict[str, Tensor]:
        """What ``load_state`` continues from."""
        for values in self._kept.values():
            values[:] = [torch.cat(values)]
        return {name: values[0] for name, values in self._kept.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what ``state`` gave of metrics of as many classes."""
        self._kept = {name: [values.to(self.device)] for name, values in state.items()}

    def images(self, number: int = 0) -> int:
        """How many images of a domain were taken in."""
        return len(self._of(number).get("labels", ()))

    def compute(self, number: int = 0) -> dict[str, float]:
        """Of a domain: images ``n``, ``accuracy`` and ``calibration_error``, in [0, 1], and mean ``entropy``, in nats.

        The calibration error is the expected one of the top label (arXiv:1706.04599), over 15 bins of equal width.
        """
        from torchmetrics.functional.classification import binary_calibration_error

        images = self._of(number)
        # torchmetrics compares a probability with the outcome it stands for: here "the top label is right".
        # It gives 1.0 a bin of its own; a hair less belongs to the last of the 15.
        error = binary_calibration_error(
            images["confidence"].clamp(0, 1 - torch.finfo(torch.float32).eps),
            images["correct"].long(),
            n_bins=CALIBRATION_BINS,
            norm="l1",
            validate_args=False,
        )
        return {
            "n": len(images["labels"]),
            "accuracy": int(images["correct"].sum()) / len(images["labels"]),
            "calibration_error": float(error),
            "entropy": float(images["entropy"].double().mean()),
        }

    def classes(self, number: int = 0) -> list[tuple[int, int, int]]:
        """Of each class in a domain: images labelled with it, predicted as it, and of it predicted rightly."""
        images = self._of(number)
        right = images["labels"][images["correct"]]
        counted = (images["labels"], images["predicted"], right)
        return list(zip(*(torch.bincount(of, minlength=self.num_classes).tolist() for of in counted), strict=True))

    def _of(self, number: int) -> dict[str, Tensor]:
        """What the images of a domain came to."""
        images = self.state()
        if "domain_index" not in images:
            return images if number == 0 else {}
        mine = images["domain_index"] == number
        return {name: values[mine] for name, values in images.items()}

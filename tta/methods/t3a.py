"""T3A: classify by prototypes that the sure images of the stream make, and leave the model alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tta.methods.base import Method, use_batch_statistics
from tta.methods.common.features import class_vectors, classifier, logits_and_features, select_classes
from tta.methods.common.losses import upcast
from tta.objectives import EM
from tta.utils.validation import check_int


class T3A(Method):
    """Test-time templates adjuster (Iwasawa and Matsuo, NeurIPS 2021): no weight changes, but what classifies does.

    A bank holds supports: features of length 1, each with a pseudo-label and an entropy. It begins with the rows of the
    classifier's weight, which the classifier itself labels. A batch's features (what the classifier sees) are added;
    then each class keeps its ``supports_per_class`` surest supports (of equally sure ones, the first), whose sum, at
    length 1, is its prototype. The logits are the products of features, at their own length and without a bias, with
    the prototypes: so a batch is predicted *after* it went into them. A class without any support gets a logit of 0.

    The bank grows with the stream, up to C x ``supports_per_class`` x D numbers, and its size depends on what comes:
    dropping supports waits for the device.

    Args:
        backbone: see ``Method``; its classifier is a linear layer.
        supports_per_class: M of the paper, at least 1; ``None`` keeps all.
        batch_statistics: predict with the BatchNorm statistics of the batch instead of the source's.
        window: see ``Method``; images go into the bank once a window of new ones has come.

    Raises:
        ValueError: for a value out of range, or a backbone without a linear classifier.
    """

    supports: Tensor  # (S, D), ordered by class and, within it, by entropy
    labels: Tensor  # (S,)
    entropies: Tensor  # (S,), nats

    def __init__(
        self,
        backbone: nn.Module,
        supports_per_class: int | None = 100,
        batch_statistics: bool = False,
        window: int = 0,
    ) -> None:
        super().__init__(backbone, window)
        if supports_per_class is not None:
            check_int("method.supports_per_class", supports_per_class, 1)
        self.supports_per_class = supports_per_class
        classifier(self.backbone)
        if batch_statistics:
            use_batch_statistics(self)
        self.entropy = EM()
        # Empty until the first batch.
        self.register_buffer("supports", torch.empty(0))
        self.register_buffer("labels", torch.empty(0, dtype=torch.long))
        self.register_buffer("entropies", torch.empty(0))

    def step(self, images: Tensor) -> Tensor:
        """Add the batch to the supports, and predict."""
        return self._classify(images, add=True)

    def predict(self, images: Tensor) -> Tensor:
        """Predict with the supports that there are."""
        return self._classify(images, add=False)

    @torch.no_grad()
    def _classify(self, images: Tensor, add: bool) -> Tensor:
        logits, features = logits_and_features(self.backbone, images)
        with torch.autocast(images.device.type, enabled=False):
            features = upcast(features)
            bank = self._bank()
            if add:
                bank = self._select(*map(torch.cat, zip(bank, self._as_supports(features, logits), strict=True)))
                self.supports, self.labels, self.entropies = bank
            return features @ _prototypes(*bank[:2], logits.shape[-1]).T

    def _bank(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.supports.numel():
            return self.supports, self.labels, self.entropies
        vectors = class_vectors(self.backbone)
        logits = select_classes(self.backbone, classifier(self.backbone)(vectors))
        return self._select(*self._as_supports(upcast(vectors), logits))

    def _as_supports(self, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return functional.normalize(features, dim=-1), logits.argmax(-1), self.entropy(logits)

    def _select(self, supports: Tensor, labels: Tensor, entropies: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Order by class and entropy, and drop what is too much of a class."""
        order = entropies.argsort(stable=True)
        order = order[labels[order].argsort(stable=True)]
        if self.supports_per_class is not None:
            labels_in_order = labels[order]
            first_of_class = torch.searchsorted(labels_in_order, labels_in_order)
            rank = torch.arange(len(order), device=order.device) - first_of_class
            order = order[rank < self.supports_per_class]
        return supports[order], labels[order], entropies[order]


def _prototypes(supports: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Sum the supports of each class, in order of class, and normalise: (C, D)."""
    starts = torch.searchsorted(labels, torch.arange(num_classes + 1, device=labels.device))
    sums = torch.segment_reduce(supports, "sum", offsets=starts, axis=0, unsafe=True)
    return functional.normalize(sums, dim=-1)

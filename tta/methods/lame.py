"""LAME: correct the predictions of a batch so that neighbours agree, and leave the model alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from tta.methods.base import Method, use_batch_statistics
from tta.methods.common.features import classifier, logits_and_features
from tta.methods.common.losses import upcast
from tta.utils.validation import check_int

TOLERANCE = 1e-8
"""Relative change of the energy below which the assignments have converged."""

MIN_SIGMA = 1e-4
"""Distance below which features of length 1 are equal: far above what float32 leaves between two equal images, 1e-6."""


def rbf_affinity(features: Tensor, neighbours: int) -> Tensor:
    """``exp(-d^2 / 2 sigma^2)``, with sigma the mean distance to the k-th neighbour; the first one is oneself."""
    distance = _distances(features)
    sigma = distance.topk(min(neighbours, len(features)), largest=False).values[:, -1].mean()
    return torch.exp(-((distance / sigma.clamp(min=MIN_SIGMA)) ** 2) / 2)


def knn_affinity(features: Tensor, neighbours: int) -> Tensor:
    """1 from each sample to the k others next to it, else 0; not symmetric."""
    distance = _distances(features).fill_diagonal_(math.inf)
    nearest = distance.topk(min(neighbours, len(features) - 1), largest=False).indices
    return torch.zeros_like(distance).scatter_(1, nearest, 1)


def linear_affinity(features: Tensor, neighbours: int) -> Tensor:
    """The cosine."""
    return features @ features.T


AFFINITIES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "rbf": rbf_affinity,
    "knn": knn_affinity,
    "linear": linear_affinity,
}
"""Features of length 1, (N, D), and k to affinities (N, N)."""


class LAME(Method):
    """Laplacian adjusted maximum-likelihood estimation (arXiv:2201.05718): no weight changes, only the predictions.

    Assignments ``z`` of a batch stay near the predictions ``p``, and agree where features do: iterate ``z_i`` in
    proportion to ``p_i exp(sum_j w_ij z_j)``, from ``z = p``, until the energy ``sum_i KL(z_i || p_i) - sum_ij w_ij
    z_i z'_j`` (z' of the iteration before) is stable. Features are what the classifier sees, at length 1.

    Made for streams where the images of a batch belong together (few classes at a time, one video): there it gains; on
    independent images of many classes it falls behind ``Source``, as neighbours of other classes pull. The larger the
    batch, the stronger the pull, for no affinity is normalised. On a single image it changes no class.

    The logits are ``log z``, so that their softmax is the assignment; the official code returns ``z`` itself. The
    iterations always run to ``max_steps``: once the energy is stable the assignments are frozen, on the device.

    Args:
        backbone: see ``Method``; its classifier is a linear layer.
        affinity: ``rbf``, ``knn`` or ``linear``.
        neighbours: k of ``rbf``, where a sample counts as the first of its own, and of ``knn``, where it does not.
        max_steps: iterations at most, at least 1.
        batch_statistics: predict with the BatchNorm statistics of the batch instead of the source's.
        window: see ``Method``; smaller batches are corrected among the images before them.

    Raises:
        ValueError: for a value out of range, or a backbone without a linear classifier.
    """

    def __init__(
        self,
        backbone: nn.Module,
        affinity: str = "rbf",
        neighbours: int = 5,
        max_steps: int = 100,
        batch_statistics: bool = False,
        window: int = 0,
    ) -> None:
        super().__init__(backbone, window)
        if affinity not in AFFINITIES:
            raise ValueError(f"method.affinity must be one of {', '.join(AFFINITIES)}; got {affinity!r}")
        self.affinity = AFFINITIES[affinity]
        self.neighbours = check_int("method.neighbours", neighbours, 1)
        self.max_steps = check_int("method.max_steps", max_steps, 1)
        classifier(self.backbone)
        if batch_statistics:
            use_batch_statistics(self)

    def step(self, images: Tensor) -> Tensor:
        """Predict, and correct."""
        return self.predict(images)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Predict, and correct."""
        logits, features = logits_and_features(self.backbone, images)
        with torch.autocast(images.device.type, enabled=False):
            logits, features = upcast(logits), upcast(features)
            # As in the official code; no class is so improbable that neighbours cannot vote for it.
            log_p = (logits.softmax(-1) + 1e-10).log()
            affinity = self.affinity(functional.normalize(features, dim=-1), self.neighbours)
            return assign(log_p, affinity, self.max_steps)


def assign(log_p: Tensor, affinity: Tensor, max_steps: int) -> Tensor:
    """Iterate LAME's assignments until they have converged.

    Args:
        log_p: logarithms of the predictions, (N, C), finite.
        affinity: (N, N).
        max_steps: iterations at most.

    Returns:
        Logarithms of the assignments, (N, C), finite.
    """
    log_z = log_p.log_softmax(-1)
    energy = log_p.new_full((), math.inf)
    converged = torch.zeros_like(energy, dtype=torch.bool)
    for step in range(max_steps):
        exponent = log_p + affinity @ log_z.exp()
        # With z = softmax(exponent), the energy is this.
        before, energy = energy, -exponent.logsumexp(-1).sum()
        log_z = torch.where(converged, log_z, exponent.log_softmax(-1))
        if step > 1:
            converged = converged | ((energy - before).abs() <= TOLERANCE * before.abs())
    return log_z


def _distances(features: Tensor) -> Tensor:
    # By way of a matrix product, which torch takes for larger batches, a distance of 0 would not be 0.
    return torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")

"""ROID: a weighted soft likelihood ratio, weights kept near the source, and predictions corrected by their prior."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from tta.methods.base import Method, OptimizerFactory, use_batch_statistics
from tta.methods.common.augment import augment
from tta.methods.common.batch_norm import duplicate_if_single
from tta.methods.common.ema import ema_update_
from tta.methods.common.losses import consistency, probabilities
from tta.methods.common.parameters import NORM_PARAMETERS, ParameterChoice
from tta.methods.common.resettable import BufferList
from tta.objectives import EM, SLR
from tta.utils.validation import check_float, check_int

MIN_RANGE = 1e-4
"""Diversities (in [0, 1]) or entropies (in nats) of a batch that differ by less are equal.

Far above what float32 leaves of a difference between two equal images, 1e-6, and far below the differences that weigh
samples, 0.1 and more.
"""


class ROID(Method):
    """Universal test-time adaptation (arXiv:2306.00650).

    BatchNorm layers use the statistics of the current batch; scale and shift of normalisation layers adapt. Each step:

    1. Predict, and weigh each sample (see ``sample_weights``): those that are sure, and unlike the mean prediction so
       far, count more; those less unlike it than the batch's mean are dropped.
    2. Make a step on the weighted soft likelihood ratio (``SLR``) of the samples, and, with the same weights, the
       symmetric cross-entropy between the predictions of the samples kept and of an augmentation of them, gradients
       through both. Both are summed and divided by the number of images in the batch. (The official code divides by the
       configured batch size, which makes a difference for a last batch that is smaller.) The augmentation is CoTTA's
       without blur and noise. Only what is kept is forwarded again, as BatchNorm's statistics are those of what is
       forwarded; how many that are makes the host wait for the device once a step.
    3. Pull the adapted weights a little to the source.
    4. Correct the predictions of 1 by the smoothed prior of the classes in the batch, and return those logits.

    One image is enough where no layer needs a batch; it weighs 1, as samples that are all alike do (in the official
    code such weights are not a number, or decided by rounding).

    Args:
        backbone: see ``Method``.
        optimizer: makes an optimizer of the adapted parameters.
        adapt: which parameters those are.
        temperature: of the samples' weights, greater than 0.
        class_momentum: share of itself that the mean prediction keeps in a step, in [0, 1].
        source_share: of the source in the weights after each step, in [0, 1].
        prior_correction: return corrected logits.
        weighting: weigh and drop samples; otherwise all count 1.
        consistency: have the second term of the loss.
        official_quirks: correct as the official code does, and so the published numbers: the *logits* are multiplied by
            the smoothed prior. Otherwise, as in the paper, the probabilities are.
        seed: of augmentations.
        window: see ``Method``.

    Raises:
        ValueError: if no parameter is left to adapt, or for a value out of range.
    """

    mean_prediction: Tensor  # (C,), moving average

    def __init__(
        self,
        backbone: nn.Module,
        optimizer: OptimizerFactory,
        adapt: ParameterChoice = NORM_PARAMETERS,
        temperature: float = 1 / 3,
        class_momentum: float = 0.9,
        source_share: float = 0.01,
        prior_correction: bool = True,
        weighting: bool = True,
        consistency: bool = True,
        official_quirks: bool = False,
        seed: int = 0,
        window: int = 0,
    ) -> None:
        super().__init__(backbone, window)
        if not temperature > 0:
            raise ValueError(f"method.temperature must be a number greater than 0, got {temperature}")
        self.temperature = temperature
        self.class_momentum = check_float("method.class_momentum", class_momentum, 0, 1)
        self.source_share = check_float("method.source_share", source_share, 0, 1)
        self.prior_correction = prior_correction
        self.weighting = weighting
        self.consistency = consistency
        self.official_quirks = official_quirks
        self.ratio = SLR()
        self.register_buffer("mean_prediction", torch.empty(0))
        use_batch_statistics(self)
        chosen = adapt(self.backbone)
        self.optimizer = self.make_optimizer(chosen, optimizer)
        self.adapted = list(chosen.values())
        self.source = BufferList(self.adapted)
        self.draws = torch.Generator().manual_seed(check_int("method.seed", seed, 0))

    def predict(self, images: Tensor) -> Tensor:
        """Predict, and correct by the prior of these images."""
        return self._correct(super().predict(images))

    def step(self, images: Tensor) -> Tensor:
        """Predict, update, and return the corrected prediction."""
        logits = self.backbone(images)
        weights = self._weights(logits.detach()) if self.weighting else torch.ones_like(logits[:, 0])
        total = (weights * self.ratio(logits)).sum()
        if self.consistency:
            total = total + self._inconsistency(images, logits, weights)
        loss = total / len(images)
        self.update(loss)
        ema_update_(self.adapted, self.source, self.source_share)
        self.log(loss=loss, used=(weights > 0).sum())
        return self._correct(logits.detach())

    def _weights(self, logits: Tensor) -> Tensor:
        """Weigh each sample, (N,), and take the batch into the mean prediction."""
        p = probabilities(logits)
        if not self.mean_prediction.numel():
            self.mean_prediction = torch.full_like(p[0], 1 / p.shape[1])
        weights = sample_weights(logits, self.mean_prediction, self.temperature)
        self.mean_prediction.lerp_(p.mean(0), 1 - self.class_momentum)
        return weights

    def _inconsistency(self, images: Tensor, logits: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of how far the predictions of augmented images are from those of the images."""
        kept = weights.nonzero().squeeze(1)
        augmented = self.backbone(duplicate_if_single(augment(images[kept], self.draws, padding="reflect")))[
            : len(kept)
        ]
        return (weights[kept] * consistency(augmented, logits[kept], symmetric=True)).sum()

    def _correct(self, logits: Tensor) -> Tensor:
        if not self.prior_correction:
            return logits
        prior = smoothed_prior(probabilities(logits))
        return logits * prior if self.official_quirks else logits + prior.log()


def sample_weights(logits: Tensor, mean_prediction: Tensor, temperature: float) -> Tensor:
    """Weigh samples by ``exp(diversity * certainty / temperature)``; that is 1 or more, or 0 if dropped.

    Diversity is 1 - the cosine similarity with the mean prediction, certainty minus the entropy, and both are scaled to
    [0, 1] over the batch. Dropped are samples whose diversity is below the batch's mean; one is always kept. A range
    below ``MIN_RANGE`` counts as none: the same images weigh the same, however a processor rounds.

    Args:
        logits: (N, C).
        mean_prediction: (C,).
        temperature: greater than 0.

    Returns:
        (N,).
    """
    diversity = _scaled(1 - cosine_similarity(mean_prediction, probabilities(logits), dim=-1))
    certainty = _scaled(-EM()(logits))
    return torch.where(diversity < diversity.mean(), 0, (diversity * certainty / temperature).exp())


def smoothed_prior(p: Tensor) -> Tensor:
    """Mean of predictions p, (N, C), made smoother the fewer samples and classes there are: (C,), sums to 1."""
    n, c = p.shape
    prior = p.mean(0)
    smooth = max(1 / n, 1 / c) / prior.max()
    return (prior + smooth) / (1 + smooth * c)


def _scaled(values: Tensor) -> Tensor:
    """Scale values (N,) to [0, 1] over the batch; all 0 if they differ by less than ``MIN_RANGE``."""
    low, high = values.aminmax()
    return torch.where(high - low < MIN_RANGE, 0, (values - low) / (high - low))

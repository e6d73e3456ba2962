"""CoTTA: learn from a moving average of the network, averaged over augmentations, and never go far from the source."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tta.methods.base import Method, OptimizerFactory, use_batch_statistics
from tta.methods.common.augment import augment
from tta.methods.common.ema import ema_update_
from tta.methods.common.losses import consistency
from tta.methods.common.parameters import ParameterChoice
from tta.utils.validation import check_float, check_int

WEIGHTS_AND_BIASES = ParameterChoice("all", include=("*weight", "*bias"))
"""All that the official code trains: not the tokens and position embeddings of a ViT."""


class CoTTA(Method):
    """Continual test-time adaptation (arXiv:2203.13591).

    Three networks of the same kind, each with the BatchNorm statistics of the current batch: the student (the
    backbone), all of whose weights and biases adapt; the teacher, a moving average of the student; the anchor, which is
    the source. Each step:

    1. The teacher predicts: on the images, or, if the mean confidence of the anchor is below a threshold, the mean of
       its logits over augmentations of them.
    2. The student makes one step on its cross-entropy with that prediction.
    3. The teacher moves towards the student.
    4. Each weight of the student goes back to the source with a small probability.

    The logits are those of the *teacher*, in 1: so before the update, as in the official code. Between the updates of a
    window they are those of the teacher without augmentations. That the teacher is asked one way or the other makes the
    host wait for the device once a step; it spares the forward passes of all augmentations where they are not needed.

    Args:
        backbone: see ``Method``.
        optimizer: makes an optimizer of the adapted parameters.
        adapt: which parameters those are.
        teacher_momentum: share of itself that the teacher keeps in a step, in [0, 1].
        restore: probability of a weight to go back to the source, in [0, 1].
        augmentations: that the teacher's prediction is averaged over, at least 1.
        confidence: mean probability of the anchor's predicted class below which that is done, in [0, 1].
        symmetric: the mean of the cross-entropy of the student with the teacher and of the teacher with the student,
            as the official code has it for ImageNet-C, instead of the first alone, as for CIFAR.
        seed: of augmentations and of what is restored.
        window: see ``Method``.

    Raises:
        ValueError: if no parameter is left to adapt, or for a value out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        optimizer: OptimizerFactory,
        adapt: ParameterChoice = WEIGHTS_AND_BIASES,
        teacher_momentum: float = 0.999,
        restore: float = 0.01,
        augmentations: int = 32,
        confidence: float = 0.92,
        symmetric: bool = False,
        seed: int = 0,
        window: int = 0,
    ) -> None:
        super().__init__(backbone, window)
        self.teacher_momentum = check_float("method.teacher_momentum", teacher_momentum, 0, 1)
        self.restore = check_float("method.restore", restore, 0, 1)
        self.augmentations = check_int("method.augmentations", augmentations, 1)
        self.confidence = check_float("method.confidence", confidence, 0, 1)
        self.symmetric = symmetric
        use_batch_statistics(self)
        self.teacher = copy.deepcopy(self.backbone)
        self.anchor = copy.deepcopy(self.backbone)
        self.optimizer = self.make_optimizer(adapt(self.backbone), optimizer)
        device = next(self.backbone.parameters()).device
        check_int("method.seed", seed, 0)
        self.draws = torch.Generator().manual_seed(seed)
        self.noise = torch.Generator(device).manual_seed(seed)

    def predict(self, images: Tensor) -> Tensor:
        """Predict with the teacher."""
        with torch.no_grad():
            return self.teacher(images)

    def step(self, images: Tensor) -> Tensor:
        """Predict with the teacher, then update the student, and after it the teacher."""
        target = self._teach(images)
        loss = consistency(self.backbone(images), target, self.symmetric).mean()
        self.update(loss)
        ema_update_(self.teacher.parameters(), self.backbone.parameters(), 1 - self.teacher_momentum)
        self._restore()
        self.log(loss=loss, used=len(images))
        return target

    @torch.no_grad()
    def _teach(self, images: Tensor) -> Tensor:
        confidence = self.anchor(images).float().softmax(-1).amax(-1).mean()
        if confidence >= self.confidence:
            return self.teacher(images)
        augmented = (augment(images, self.draws, self.noise) for _ in range(self.augmentations))
        return torch.stack([self.teacher(images) for images in augmented]).mean(0)

    @torch.no_grad()
    def _restore(self) -> None:
        for parameter, source in zip(self.backbone.parameters(), self.anchor.parameters(), strict=True):
            if parameter.requires_grad:
                back = torch.rand(parameter.shape, generator=self.noise, device=parameter.device) < self.restore
                parameter.copy_(torch.where(back, source, parameter))

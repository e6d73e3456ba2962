"""MEMO: for every image, one step that makes predictions on augmented copies sure and alike."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from tta.methods.base import Method, OptimizerFactory
from tta.methods.common.batch_norm import blend_statistics
from tta.methods.common.losses import upcast
from tta.methods.common.parameters import ALL_PARAMETERS, ParameterChoice
from tta.utils.validation import check_float, check_int


class MEMO(Method):
    """Marginal entropy minimisation with one test point (arXiv:2110.09506).

    Each image by itself: augmented copies of it are classified, the entropy of their mean prediction is minimised on
    all parameters, from the source weights, and then the image itself is predicted with what came of it: *after* the
    update. Then parameters and optimizer go back to the source. Images have nothing to do with one another, so the
    method loops over them, and a batch takes as many forward and backward passes as it has images.

    BatchNorm layers normalise with source statistics that weigh as much as ``prior`` images, and those of the copies
    (while it learns) or of the image (when it predicts) as one image.

    The copies are a random crop (padding of an eighth of the side), a random flip and AugMix (arXiv:1912.02781) without
    the operations that the corruptions are made with. The official code does so for CIFAR; for ImageNet it crops and
    resizes at random.

    Args:
        backbone: see ``Method``.
        optimizer: makes an optimizer of the adapted parameters; its moments begin anew for each image.
        adapt: which parameters those are.
        augmentations: copies of each image, at least 1.
        prior: how many images the source statistics weigh as, at least 0; ``None`` takes them alone.
        steps: updates per image, each on new copies, at least 1.
        seed: of the augmentations.

    Raises:
        ValueError: for a value out of range, no parameter left to adapt, or BatchNorm without running statistics.
    """

    episodic = True

    def __init__(
        self,
        backbone: nn.Module,
        optimizer: OptimizerFactory,
        adapt: ParameterChoice = ALL_PARAMETERS,
        augmentations: int = 32,
        prior: float | None = 16,
        steps: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone)
        self.augmentations = check_int("method.augmentations", augmentations, 1)
        self.steps = check_int("method.steps", steps, 1)
        if prior is not None:
            blend_statistics(self.backbone, 1 / (check_float("method.prior", prior, 0) + 1))
        self.optimizer = self.make_optimizer(adapt(self.backbone), optimizer)
        # On the host, where the augmentations are drawn.
        self.generator = torch.Generator().manual_seed(check_int("method.seed", seed, 0))

    def step(self, images: Tensor) -> Tensor:
        """Adapt to each image, predict it, and go back."""
        parameters: list[Tensor] = [p for p in self.backbone.parameters() if p.requires_grad]
        source = [p.detach().clone() for p in parameters]
        logits, losses = [], []
        for image in images:
            losses.append(self._update(image))
            logits.append(self.predict(image.unsqueeze(0)))
            with torch.no_grad():
                torch._foreach_copy_(parameters, source)
            self.optimizer.state.clear()
        self.log(loss=torch.stack(losses).mean(), used=len(images))
        return torch.cat(logits)

    def _update(self, image: Tensor) -> Tensor:
        """Adapt to one image, and return the last loss."""
        for _ in range(self.steps):
            copies = augmented_copies(image, self.augmentations, self.generator)
            loss = marginal_entropy(self.backbone(copies))
            self.update(loss)
        return loss.detach()


def marginal_entropy(logits: Tensor) -> Tensor:
    """Entropy, in nats, of the mean of the predictions that logits (K, C) give."""
    with torch.autocast(logits.device.type, enabled=False):
        log_p = upcast(logits).log_softmax(-1)
        log_mean = log_p.logsumexp(0) - math.log(len(logits))
        return -(log_mean.exp() * log_mean).sum()


def augmentation(height: int, width: int) -> v2.Compose:
    """Make MEMO's random augmentation of one image of bytes, (3, H, W)."""
    return v2.Compose(
        [
            v2.RandomCrop((height, width), padding=[width // 8, height // 8]),
            v2.RandomHorizontalFlip(),
            # At torchvision's severity 1 all angles and distances are 0; its 2 goes as far as the original's 1.
            v2.AugMix(severity=2, all_ops=False),
        ]
    )


def augmented_copies(image: Tensor, copies: int, generator: torch.Generator) -> Tensor:
    """Augment an image, (3, H, W) in [0, 1], in so many ways: (copies, 3, H, W).

    Torchvision draws from the global generators; they are seeded from the given one, which is on the host, and put
    back.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    augment = augmentation(*image.shape[-2:])
    as_bytes = (image * 255).round().to(torch.uint8)
    devices = [image.device] if image.is_cuda else []
    with torch.random.fork_rng(devices), torch.autocast(image.device.type, enabled=False):
        # Not torch.manual_seed, which would reach the generators of other devices too.
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device.index].manual_seed(seed)
        return torch.stack([augment(as_bytes) for _ in range(copies)]).to(image.dtype) / 255

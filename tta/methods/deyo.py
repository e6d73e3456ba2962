"""DeYO: entropy minimisation on samples whose prediction hangs on the shape of what they show."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta.methods.base import Method, OptimizerFactory, use_batch_statistics
from tta.methods.common.batch_norm import duplicate_if_single
from tta.methods.common.losses import probabilities, selected_mean
from tta.methods.common.parameters import NORM_BUT_LAST, ParameterChoice
from tta.objectives import EM, Objective, clone_objective
from tta.utils.validation import check_float, check_int

DESTRUCTIONS = ("patch", "pixel", "occlusion")


class DeYO(Method):
    """DeYO ("Entropy is not enough for test-time adaptation", ICLR 2024), with any objective in the entropy's place.

    BatchNorm layers use the statistics of the current batch; scale and shift of normalisation layers adapt, but for
    those of the last layers. Each batch goes through two stages:

    1. samples with entropy ``H`` below the margin survive;
    2. they are predicted once more, by themselves and without gradient, as images whose objects have lost their shape.
       Where the probability of the first prediction's class drops by more than a threshold (the pseudo-label
       probability difference, PLPD), the sample is kept.

    The loss is the mean over the kept samples of the objective times ``exp(H_0 - H) + exp(PLPD)``, a weight without
    gradient. Without any kept sample nothing changes. The logits are those of the pass before the update, which the
    objective sees as well, of the whole batch; selection and weights keep the entropy.

    BatchNorm's statistics are those of the survivors, so each step asks the device which samples survive, and then
    whether any is kept. A lone survivor goes through the network twice in one batch, with its own statistics.

    The permutations are drawn for the whole batch, so what one image's are does not depend on which others survive.

    Args:
        backbone: see ``Method``.
        objective: loss per sample on the logits; it is copied.
        optimizer: makes an optimizer of the adapted parameters, e.g. ``functools.partial(torch.optim.SGD, lr=1e-3)``.
        adapt: which parameters those are.
        margin: of the first stage's entropy, as a fraction of ln C, in [0, 1].
        entropy_reference: ``H_0`` of the weight, as a fraction of ln C, in [0, 1].
        plpd: threshold of the second stage, a difference of probabilities in [-1, 1].
        destruction: ``patch`` cuts the image into ``patches`` x ``patches`` pieces and shuffles them, ``pixel``
            shuffles the pixels, each image by a permutation of its own; ``occlusion`` fills a rectangle in the middle
            with the image's mean colour.
        patches: pieces on each side, at least 1. Where they do not fit, the image is resized (bilinear) to the next
            smaller size that does, and back afterwards.
        occlusion: sides of the rectangle, as a fraction of those of the image, in [0, 1].
        window: see ``Method``.
        seed: of the permutations.

    Raises:
        ValueError: for a value out of range, if no parameter is left to adapt, or, in a step, if an image is smaller
            than the grid of patches.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        optimizer: OptimizerFactory,
        adapt: ParameterChoice = NORM_BUT_LAST,
        margin: float = 0.5,
        entropy_reference: float = 0.4,
        plpd: float = 0.2,
        destruction: str = "patch",
        patches: int = 4,
        occlusion: float = 0.5,
        window: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, window)
        if destruction not in DESTRUCTIONS:
            raise ValueError(f"method.destruction must be one of {', '.join(DESTRUCTIONS)}; got {destruction!r}")
        self.objective = clone_objective(objective)
        self.entropy = EM()
        self.margin = check_float("method.margin", margin, 0, 1)
        self.entropy_reference = check_float("method.entropy_reference", entropy_reference, 0, 1)
        self.plpd = check_float("method.plpd", plpd, -1, 1)
        self.destruction = destruction
        self.patches = check_int("method.patches", patches, 1)
        self.occlusion = check_float("method.occlusion", occlusion, 0, 1)
        use_batch_statistics(self)
        self.optimizer = self.make_optimizer(adapt(self.backbone), optimizer)
        device = next(self.backbone.parameters()).device
        self.generator = torch.Generator(device).manual_seed(check_int("method.seed", seed, 0))

    def step(self, images: Tensor) -> Tensor:
        """Predict, then update by the samples that pass both stages."""
        logits = self.backbone(images)
        entropy = self.entropy(logits.detach())  # Ent(x)
        ln_c = math.log(logits.shape[-1])
        plpd = self._probability_drop(images, logits, entropy < self.margin * ln_c)  # PLPD(x, x')
        selected = plpd > self.plpd
        weight = (self.entropy_reference * ln_c - entropy).exp() + plpd.exp()  # 1 / exp(Ent - Ent_0) + 1 / exp(-PLPD)
        loss = selected_mean(weight * self.objective(logits), selected)
        num_used = selected.sum()
        if num_used > 0:
            self.update(loss)
        self.log(loss=loss, used=num_used)
        return logits

    @torch.no_grad()
    def _probability_drop(self, images: Tensor, logits: Tensor, survives: Tensor) -> Tensor:
        """PLPD of the samples that survive the first stage, minus infinity of the others, (N,)."""
        destroyed = self._destroy(images)
        probability, label = probabilities(logits).max(-1)
        drop = torch.full_like(probability, -math.inf)
        (survivors,) = survives.nonzero(as_tuple=True)  # waits for the device
        if len(survivors):
            after = probabilities(self.backbone(duplicate_if_single(destroyed[survivors]))[: len(survivors)])
            after = after.gather(1, label[survivors].unsqueeze(1)).squeeze(1)
            drop[survivors] = probability[survivors] - after
        return drop

    def _destroy(self, images: Tensor) -> Tensor:
        """Take the shape from what the images show.

        A backbone normalises its images channel by channel, which commutes with all that is done here.
        """
        if self.destruction == "occlusion":
            return occlude(images, self.occlusion)
        height, width = images.shape[2:]
        rows, columns = (height, width) if self.destruction == "pixel" else (self.patches, self.patches)
        if rows > height or columns > width:
            raise ValueError(
                f"method.patches must be at most the side of the images, {height}x{width} pixels; got {self.patches}"
            )
        keys = torch.rand(len(images), rows * columns, generator=self.generator, device=images.device)
        fitting = _resize(images, height // rows * rows, width // columns * columns)
        return _resize(shuffle(fitting, keys.argsort(1), rows, columns), height, width)


def shuffle(images: Tensor, order: Tensor, rows: int, columns: int) -> Tensor:
    """Cut images (N, C, H, W) into rows x columns equal pieces and put piece ``order[n, k]`` where piece ``k`` was."""
    n, channels, height, width = images.shape
    pieces = images.reshape(n, channels, rows, height // rows, columns, width // columns)
    pieces = pieces.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (N, rows * columns, C, H / rows, W / columns)
    pieces = pieces[torch.arange(n, device=order.device).unsqueeze(1), order]
    return pieces.unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


def occlude(images: Tensor, fraction: float) -> Tensor:
    """Fill a rectangle in the middle, of that fraction of each side, with the image's mean colour."""
    (tall, top), (wide, left) = ((size := round(side * fraction), (side - size) // 2) for side in images.shape[2:])
    occluded = images.clone()
    occluded[:, :, top : top + tall, left : left + wide] = images.mean((2, 3), keepdim=True)
    return occluded


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bilinear", align_corners=False)

"""RoTTA: robust BatchNorm statistics, and updates on a balanced memory of recent images."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tta.methods.base import Method, OptimizerFactory
from tta.methods.common.augment import augment
from tta.methods.common.batch_norm import blend_statistics, running_statistics
from tta.methods.common.cstu import CSTU, MemoryItem
from tta.methods.common.ema import ema_update_
from tta.methods.common.losses import consistency
from tta.methods.common.parameters import NORM_PARAMETERS, ParameterChoice
from tta.objectives import EM
from tta.utils.validation import check_float, check_int


class RoTTA(Method):
    """Robust test-time adaptation (arXiv:2303.13899), for streams whose images are correlated in time.

    A student (the backbone) whose normalisation layers adapt, and a teacher, a moving average of its parameters. Both
    have robust BatchNorm: an update normalises with a mixture of running and batch statistics, and keeps it, each
    network for itself; a prediction normalises with the running statistics alone. So batches of any size and company
    give the same predictions. Each step:

    1. The teacher predicts; these are the logits returned.
    2. The images are offered, one after another, to a memory balanced over predicted classes (see ``CSTU``).
    3. Whenever ``update_every`` images have come, also in the middle of a batch, the student makes one step on the mean
       over the memory of ``w(age) CE(student on strongly augmented images, teacher)``, where
       ``w(age) = exp(-age) / (1 + exp(-age))`` and ``age`` is in multiples of the memory's capacity; and the
       teacher moves towards the student.

    The memory decides sample by sample, which happens on the host: one transfer from the device for each batch.

    Args:
        backbone: see ``Method``.
        optimizer: makes an optimizer of the adapted parameters.
        adapt: which parameters those are.
        memory: images that the memory can hold, at least 1.
        update_every: images between two updates, at least 1.
        share: of the batch in the BatchNorm statistics, in [0, 1] (alpha in the paper).
        teacher_momentum: share of the student that the teacher takes in with an update, in [0, 1] (nu in the paper).
        timeliness_weight: of the age of an image in the memory, at least 0 (lambda_t).
        uncertainty_weight: of the entropy of its prediction, at least 0 (lambda_u).
        seed: of augmentations.

    Raises:
        ValueError: if no parameter is left to adapt, for a value out of range, or if a BatchNorm layer has no running
            statistics.
    """

    images: Tensor  # (memory, 3, H, W); the first are held, as many as there are entries
    entries: Tensor  # (held, 3): class predicted, entropy (nats), age (images)

    def __init__(
        self,
        backbone: nn.Module,
        optimizer: OptimizerFactory,
        adapt: ParameterChoice = NORM_PARAMETERS,
        memory: int = 64,
        update_every: int = 64,
        share: float = 0.05,
        teacher_momentum: float = 0.001,
        timeliness_weight: float = 1.0,
        uncertainty_weight: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone)
        self.memory = check_int("method.memory", memory, 1)
        self.update_every = check_int("method.update_every", update_every, 1)
        self.teacher_momentum = check_float("method.teacher_momentum", teacher_momentum, 0, 1)
        self.timeliness_weight = check_float("method.timeliness_weight", timeliness_weight, 0)
        self.uncertainty_weight = check_float("method.uncertainty_weight", uncertainty_weight, 0)
        blend_statistics(self.backbone, share, track=True)
        self.teacher = copy.deepcopy(self.backbone)
        self.optimizer = self.make_optimizer(adapt(self.backbone), optimizer)
        self.entropy = EM()
        self.register_buffer("images", torch.empty(0))
        self.register_buffer("entries", torch.empty(0, dtype=torch.float64))
        device = next(self.backbone.parameters()).device
        check_int("method.seed", seed, 0)
        self.draws = torch.Generator().manual_seed(seed)
        self.noise = torch.Generator(device).manual_seed(seed)

    def predict(self, images: Tensor) -> Tensor:
        """Predict with the teacher and its running statistics."""
        with torch.no_grad(), running_statistics(self.teacher):
            return self.teacher(images)

    def step(self, images: Tensor) -> Tensor:
        """Predict with the teacher, fill the memory, and update where it is time to."""
        logits = self.predict(images)
        memory, offered = self._recall(logits)
        slots: dict[int, int] = {}  # which of the images goes into a slot
        losses, used = [], 0
        for i, image in enumerate(offered):
            slot = memory.add(image.label, image.uncertainty)
            if slot is not None:
                slots[slot] = i
            if (self.images_seen + i + 1) % self.update_every == 0:
                self._hold(memory, slots, images)
                slots = {}
                losses.append(self._update())
                used += len(memory.entries)
        self._hold(memory, slots, images)
        loss = {"loss": torch.stack(losses).mean()} if losses else {}
        self.log(used=logits.new_full((), used), **loss)
        return logits

    def _recall(self, logits: Tensor) -> tuple[CSTU, list[MemoryItem]]:
        """Take the memory's entries, and what it has to know of new images, from the device to the host."""
        held = self.entries.view(len(self.entries), 3)
        label, entropy = logits.argmax(-1).double(), self.entropy(logits).double()
        new = torch.stack((label, entropy, torch.zeros_like(label)), dim=-1)
        rows = [MemoryItem(int(label), entropy, int(age)) for label, entropy, age in torch.cat((held, new)).tolist()]
        weights = self.timeliness_weight, self.uncertainty_weight
        return CSTU(rows[: len(held)], self.memory, logits.shape[-1], *weights), rows[len(held) :]

    def _hold(self, memory: CSTU, slots: dict[int, int], images: Tensor) -> None:
        """Put images into their slots, and the memory's entries onto the device."""
        if not self.images.numel():
            self.images = images.new_zeros(self.memory, *images.shape[1:])
        to, which = (torch.tensor(list(i), dtype=torch.long, device=images.device) for i in (slots, slots.values()))
        self.images.index_copy_(0, to, images[which])
        rows = [(entry.label, entry.uncertainty, entry.age) for entry in memory.entries]
        self.entries = torch.tensor(rows, dtype=torch.float64, device=images.device)

    def _update(self) -> Tensor:
        """Make a step of the student on the memory, and one of the teacher, and return the loss."""
        images = self.images[: len(self.entries)]
        with torch.no_grad():
            target = self.teacher(images)
        logits = self.backbone(augment(images, self.draws, self.noise))
        losses = consistency(logits, target)
        weight = torch.sigmoid(-self.entries[:, 2] / self.memory).to(losses.dtype)
        loss = (weight * losses).mean()
        self.update(loss)
        ema_update_(self.teacher.parameters(), self.backbone.parameters(), self.teacher_momentum)
        return loss.detach()

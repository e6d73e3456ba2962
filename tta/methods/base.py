"""The contract of a method, and what all share: parameters that adapt, passes, updates, a window of images."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from tta.methods.common.autocast import gradients, is_fp16_autocast
from tta.methods.common.batch_norm import duplicate_if_single, use_batch_stats
from tta.methods.common.resettable import ResettableModule
from tta.utils.devices import supports_channels_last
from tta.utils.validation import ComponentError, check_int

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


class Method(ResettableModule, ABC):
    """A test-time adaptation method around a backbone.

    ``logits = method(images)`` takes images (N, 3, H, W) in [0, 1] and returns detached logits (N, C), and may adapt
    while it does. Labels and domain names never reach it. The logits are those of the forward pass *before* the update
    that it causes; a method that differs says so.

    The backbone is copied, put into eval mode (no dropout, no stochastic depth) and frozen; a subclass then chooses
    what adapts, with ``use_batch_statistics`` and ``make_optimizer``, and implements ``step``. The method decides
    gradient mode and train/eval mode: a caller's ``no_grad``, ``inference_mode`` or ``.eval()`` changes nothing.

    Whatever changes from batch to batch is restored by ``reset`` and saved by ``state_dict``: parameters, buffers,
    optimizers, ``torch.Generator`` objects and objectives held as attributes, and plain attributes (numbers, lists,
    arrays ...). Tensors that should move with ``.to()`` must be buffers.

    Args:
        backbone: classifier that maps images (N, 3, H, W) in [0, 1] to logits (N, C). It is not altered.
        window: with batches of fewer images than this, predict them together with the images before them, so that
            BatchNorm has a batch of ``window`` images to take its statistics from; an update follows whenever
            ``window`` new images have come. 0 for none.

    Raises:
        ValueError: if ``window`` is no whole number.
    """

    window_buffer: Tensor  # the images of the window
    optimizer: Optimizer

    min_batch_size = 1
    """The fewest images in a batch that the method can work with."""
    min_batch_reason = ""
    """Why fewer images do not do."""
    episodic = False
    """Whether every image, or batch, begins with the source weights, so that nothing that adapts stays adapted."""
    data_digest = ""
    """What data beside the stream the method was made from, as a digest; empty for none."""

    def __init__(self, backbone: nn.Module, window: int = 0) -> None:
        super().__init__()
        self.window = check_int("method.window", window, 0)
        self.register_buffer("window_buffer", torch.empty(0))
        self.backbone = copy.deepcopy(backbone).requires_grad_(False)
        for module in self.backbone.modules():
            module.training = False
        self._supports_channels_last = supports_channels_last(self.backbone)
        device = next((parameter.device for parameter in self.backbone.parameters()), None)
        self.scaler = GradScaler("cpu" if device is None else device.type)

    def predict(self, images: Tensor) -> Tensor:
        """Predict without adapting, as ``step`` does: images (N, 3, H, W) in [0, 1] to logits (N, C)."""
        with torch.no_grad():
            return self.backbone(images)

    @abstractmethod
    def step(self, images: Tensor) -> Tensor:
        """Predict, and adapt: images (N, 3, H, W) in [0, 1] to logits (N, C). Gradients are enabled here."""

    def forward(self, images: Tensor) -> Tensor:
        """Predict and adapt on one batch.

        Args:
            images: (N, 3, H, W), in [0, 1].

        Returns:
            Detached logits (N, C).

        Raises:
            ValueError: if the batch has fewer than ``min_batch_size`` images.
            ComponentError: if ``step``, or the backbone, gives something else than logits (N, C).
        """
        if len(images) < self.min_batch_size:
            raise ValueError(batch_too_small(self, len(images)))
        self._snapshot_once()
        with gradients(images.device.type):
            # Tensors made under inference_mode cannot be saved for the backward pass; a clone can.
            images = images.clone() if images.is_inference() else images
            if images.device.type == "cpu" and not self._supports_channels_last:
                images = images.contiguous()
            logits = self._step_in_window(images) if self.window else self.step(images)
            logits = self._checked(logits, len(images))
        self.images_seen += len(images)
        self.batches_seen += 1
        return logits.detach()

    def _checked(self, logits: Any, size: int) -> Tensor:
        """Return what ``step`` gave if it is logits of so many images; raise ``ComponentError`` otherwise."""
        if isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == size:
            return logits
        got = f"a tensor {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ComponentError(
            f"{type(self).__name__}.step must return a tensor of logits (N, C), one row for each of the {size} images; "
            f"got {got}. A backbone that returns more than logits needs a wrapper"
        )

    def _step_in_window(self, images: Tensor) -> Tensor:
        """Predict the images together with those before them, and adapt when all of the window is new."""
        if len(images) >= self.window:
            self.window_buffer = images[-self.window :]
            return self.step(images)
        n, seen = len(images), self.images_seen
        window = torch.cat((self.window_buffer, images))[-self.window :] if self.window_buffer.numel() else images
        self.window_buffer = window
        # The first image of all has no company yet but itself.
        window = duplicate_if_single(window)
        new_window = (seen + n) // self.window > seen // self.window
        return (self.step(window) if new_window else self.predict(window))[-n:]

    def make_optimizer(self, parameters: Mapping[str, nn.Parameter], optimizer: OptimizerFactory) -> Optimizer:
        """Let these parameters, and no others, take gradients; return a new optimizer of them.

        Raises:
            ValueError: if there are none.
            TypeError: for an optimizer that is made already, and so has other parameters.
        """
        if isinstance(optimizer, Optimizer):
            raise TypeError(
                f"{type(self).__name__} has its optimizer made for the parameters of its own copy of the backbone, and "
                "got one that is made already: give what makes one, e.g. "
                f"functools.partial(torch.optim.{type(optimizer).__name__}, lr=1e-3)"
            )
        if not parameters:
            kinds = sorted({type(module).__name__ for module in self.backbone.modules()})
            frozen = [kind for kind in kinds if kind.startswith("FrozenBatchNorm")]
            hint = f"{frozen[0]} holds its scale and shift as buffers, which do not adapt. " if frozen else ""
            raise ValueError(
                f"{type(self).__name__} adapts the scale and shift of normalisation layers (BatchNorm, LayerNorm, "
                f"GroupNorm, RMSNorm, InstanceNorm), but the backbone has none; its layers are: {', '.join(kinds)}. "
                f"{hint}Choose another model, all parameters (adapt@method.adapt=all; in Python "
                'adapt=ParameterChoice("all")), or method=source'
            )
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        return optimizer(parameters.values())

    def update(self, loss: Tensor) -> None:
        """Make one optimizer step on a loss: zero_grad, backward, step.

        Args:
            loss: (), in nats.

        Raises:
            ComponentError: if the loss needs no gradient.
        """
        self.optimizer.zero_grad()
        self.backward(loss)
        self.apply_gradients()

    def backward(self, loss: Tensor) -> None:
        """Compute gradients of a loss; under float16 autocast they are scaled, as ``apply_gradients`` expects.

        Raises:
            ComponentError: if the loss needs no gradient.
        """
        if not loss.requires_grad:
            raise ComponentError(
                f"{type(self).__name__}: the loss depends on no adapted parameter; use the adapted parameters in the "
                "backbone's forward pass, and compute the loss from its logits, not detached"
            )
        if is_fp16_autocast(loss.device):
            loss = self.scaler.scale(loss)
        loss.backward()

    def unscale_gradients(self) -> None:
        """Under float16 autocast, unscale gradients that no step follows, and adapt the scale."""
        if is_fp16_autocast(self.optimizer.param_groups[0]["params"][0].device):
            self.scaler.unscale_(self.optimizer)
            self.scaler.update()

    def apply_gradients(self) -> None:
        """Make the optimizer's step; under float16 autocast unscale first, and skip it if a gradient is not finite."""
        if is_fp16_autocast(self.optimizer.param_groups[0]["params"][0].device):
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Have ``torch.compile`` make the backbone's passes, in place, as the first batches come; see there.

        A batch of another size, as the last of a domain is, has it compile once more, for all sizes.
        """
        self.backbone.compile(*args, **kwargs)

    @property
    def compiled(self) -> bool:
        """Whether ``compile`` was called."""
        return self.backbone._compiled_call_impl is not None

    def log(self, **diagnostics: Tensor | float) -> None:
        """Log scalars of this step for the runner to record: ``loss`` (nats), ``used`` (samples)."""
        device = next((parameter.device for parameter in self.backbone.parameters()), None)
        self.diagnostics = {
            name: value.detach() if isinstance(value, Tensor) else torch.full((), value, device=device)
            for name, value in diagnostics.items()
        }

    def train(self, mode: bool = True) -> Self:
        """Change nothing: the method decides the mode of each layer."""
        return self


def use_batch_statistics(method: Method) -> None:
    """Make every BatchNorm layer normalise with the statistics of the current batch, and keep none.

    One image gives no statistics over a batch: with BatchNorm in the backbone the method asks for two or more, unless
    it has a window of images to take them from.
    """
    if use_batch_stats(method.backbone) and method.window < 2:
        method.min_batch_size = 2
        method.min_batch_reason = "for the statistics of BatchNorm layers"


def batch_too_small(method: Method, size: int) -> str:
    """Say why a batch of this size cannot be adapted on."""
    return (
        f"{type(method).__name__} needs at least {method.min_batch_size} images in every batch "
        f"{method.min_batch_reason}, got a batch of {size}: choose another stream.batch_size (or stream.limit, so that "
        "no last batch of one image is left), a window of recent images where the method has one (method.window=64), "
        "a backbone with LayerNorm or GroupNorm, or method=source"
    )

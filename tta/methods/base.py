"""The contract of a method, and once for all: normalisation layers, adapted parameters, reset, state for resume."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from tta.objectives import Objective

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]

NORM_LAYERS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


class Method(nn.Module, ABC):
    """A test-time adaptation method around a backbone.

    ``logits = method(images)`` takes images (N, 3, H, W) in [0, 1] and returns detached logits (N, C), and may adapt
    while it does. Labels and domain names never reach it. The logits are those of the forward pass *before* the update
    that it causes; a method that differs says so.

    The backbone is copied, put into eval mode (no dropout, no stochastic depth) and frozen; a subclass then chooses
    what adapts, with ``use_batch_statistics`` and ``adapt``, and implements ``step``. Gradient mode and train/eval
    mode are the method's own affair: a caller's ``no_grad``, ``inference_mode`` or ``.eval()`` changes nothing.

    Everything that changes from batch to batch must be a parameter, a buffer, an optimizer, a ``torch.Generator`` or
    an objective held as an attribute: such state is restored by ``reset`` and saved by ``state_dict``.

    Args:
        backbone: classifier that maps images (N, 3, H, W) in [0, 1] to logits (N, C). It is not altered.
    """

    min_batch_size = 1
    """The fewest images in a batch that the method can work with."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone).requires_grad_(False)
        for module in self.backbone.modules():
            module.training = False
        self.diagnostics: dict[str, Tensor] = {}
        self._initial: dict[str, Any] | None = None

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
        """
        if len(images) < self.min_batch_size:
            raise ValueError(batch_too_small(self, len(images)))
        self._remember()
        with torch.inference_mode(False), torch.enable_grad():
            # Tensors made under inference_mode cannot be saved for the backward pass; a clone can.
            return self.step(images.clone() if images.is_inference() else images).detach()

    def adapt(self, parameters: Mapping[str, nn.Parameter], optimizer: OptimizerFactory) -> Optimizer:
        """Let these parameters, and no others, take gradients, and hand them to a new optimizer.

        Raises:
            ValueError: if there are none.
        """
        if not parameters:
            kinds = sorted({type(module).__name__ for module in self.backbone.modules()})
            raise ValueError(
                f"{type(self).__name__} adapts the scale and shift of normalisation layers (BatchNorm, LayerNorm, "
                f"GroupNorm), but the backbone has none; its layers are: {', '.join(kinds)}. "
                "Choose another model, or method=source"
            )
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        return optimizer(parameters.values())

    def report(self, **diagnostics: Tensor) -> None:
        """Tell the runner about this step, in scalar tensors on the device: ``loss`` (nats), ``used`` (samples)."""
        self.diagnostics = diagnostics

    def reset(self) -> None:
        """Restore, in place, the state that the method had when it was made."""
        self._remember()
        assert self._initial is not None
        with torch.no_grad():
            current = self._tensors()
            for name, tensor in self._initial["tensors"].items():
                current[name].copy_(tensor)
        for module in self.modules():
            if isinstance(module, Objective):
                module.reset()
        self.set_extra_state(self._initial["extra"])
        self.zero_grad(set_to_none=True)
        self.diagnostics = {}

    def train(self, mode: bool = True) -> Self:
        """Change nothing: the method decides the mode of each layer."""
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """State beside parameters and buffers: optimizers and generators. Called by ``state_dict``."""
        return {
            name: value.state_dict() if isinstance(value, Optimizer) else value.get_state()
            for name, value in vars(self).items()
            if isinstance(value, Optimizer | torch.Generator)
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what ``get_extra_state`` gave. Called by ``load_state_dict``."""
        for name, saved in state.items():
            holder = getattr(self, name)
            if isinstance(holder, Optimizer):
                holder.load_state_dict(copy.deepcopy(saved))
            else:
                holder.set_state(saved)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Continue from a saved state; ``reset`` still goes back to the state the method was made with."""
        self._remember()
        return super().load_state_dict(*args, **kwargs)

    def _tensors(self) -> dict[str, Tensor]:
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        return {**trained, **dict(self.named_buffers())}

    def _remember(self) -> None:
        """Take the snapshot that ``reset`` restores, the first time anything could change."""
        if self._initial is None:
            tensors = {name: t.detach().clone() for name, t in self._tensors().items() if t.numel()}
            self._initial = {"tensors": tensors, "extra": copy.deepcopy(self.get_extra_state())}


def norm_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Scale and shift of every normalisation layer, by name (Tent, arXiv:2006.10726, section 3.2)."""
    return {
        f"{layer}.{name}" if layer else name: parameter
        for layer, module in model.named_modules()
        if isinstance(module, NORM_LAYERS)
        for name, parameter in module.named_parameters(recurse=False)
    }


def use_batch_statistics(method: Method) -> None:
    """Make every BatchNorm layer normalise with the statistics of the current batch, and keep none.

    The running statistics are dropped, so that no mode a caller could set brings them back. One image gives no
    statistics over a batch: with BatchNorm in the backbone the method asks for two or more.
    """
    layers = [module for module in method.backbone.modules() if isinstance(module, _BatchNorm)]
    for layer in layers:
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    if layers:
        method.min_batch_size = 2


def batch_too_small(method: Method, size: int) -> str:
    """Say why a batch of this size cannot be adapted on."""
    return (
        f"{type(method).__name__} with BatchNorm layers needs at least {method.min_batch_size} images in every batch "
        f"for the batch statistics, got a batch of {size}: choose another stream.batch_size (or stream.limit, so that "
        "no last batch of one image is left), a backbone with LayerNorm or GroupNorm, or method=source"
    )

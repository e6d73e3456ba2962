"""What BatchNorm layers normalise with: statistics of the source data, of the batch, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tta.methods.common.exact_batch_norm import TORCHS_OWN, BatchStatsNorm


def use_batch_stats(model: nn.Module) -> bool:
    """Make every BatchNorm layer normalise with the statistics of the current batch, and keep none.

    The running statistics are dropped, so that no mode a caller could set brings them back. A layer of torch or timm
    has a ``BatchStatsNorm`` put in its place; one of another kind goes on by itself.

    Returns:
        Whether there is any such layer.
    """

    def current(layer: _BatchNorm) -> nn.Module:
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        return BatchStatsNorm(layer) if type(layer).__module__.startswith(TORCHS_OWN) else layer

    return _replace_layers(model, current)


def duplicate_if_single(images: Tensor) -> Tensor:
    """Give a lone image itself for company, (1, ...) to (2, ...), and leave more than one as they are.

    The statistics of two copies are those of one, but torch refuses to take them of a single value in a channel.
    """
    return torch.cat((images, images)) if len(images) == 1 else images


class BlendedBatchNorm(nn.Module):
    """A BatchNorm layer that normalises with ``(1 - share)`` running and ``share`` batch statistics.

    Gradients flow through the batch's share. The variance of the batch is the biased one (divided by the number of
    values), as BatchNorm itself normalises with.

    Args:
        layer: the BatchNorm layer whose place this one takes; scale and shift are shared with it, and what it does
            afterwards (timm's layers that hold an activation) is done here too.
        share: of the batch, in [0, 1].
        track: keep the mixture as the running statistics of the next batch.
        unbiased: use the unbiased variance of the batch.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, layer: _BatchNorm, share: float, track: bool = False, unbiased: bool = False) -> None:
        super().__init__()
        mean, var = _running_statistics(layer)
        self.weight = layer.weight
        self.bias = layer.bias
        self.eps = layer.eps
        self.share = share
        self.track = track
        self.unbiased = unbiased
        self.mixing = True
        self.register_buffer("running_mean", mean.clone())
        self.register_buffer("running_var", var.clone())
        for name, module in layer.named_children():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, channels, ...)."""
        shape = (1, -1, *[1] * (x.ndim - 2))
        values = x.to(self.running_mean.dtype)
        mean, var = self._mix(values) if self.mixing else (self.running_mean, self.running_var)
        y = (values - mean.view(shape)) * (var + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        y = y.to(x.dtype)
        for module in self.children():
            y = module(y)
        return y

    def _mix(self, values: Tensor) -> tuple[Tensor, Tensor]:
        var, mean = torch.var_mean(values, [d for d in range(values.ndim) if d != 1], correction=int(self.unbiased))
        mean = torch.lerp(self.running_mean, mean, self.share)
        var = torch.lerp(self.running_var, var, self.share)
        if self.track:
            self.running_mean.copy_(mean.detach())
            self.running_var.copy_(var.detach())
        return mean, var


def blend_statistics(model: nn.Module, share: float, track: bool = False, unbiased: bool = False) -> None:
    """Put a ``BlendedBatchNorm`` in the place of every BatchNorm layer of a model; see there for the arguments.

    Raises:
        ValueError: for a share outside [0, 1], or if a layer has no running statistics.
    """
    _check_share(share)
    _replace_layers(model, lambda layer: BlendedBatchNorm(layer, share, track, unbiased))


@contextmanager
def running_statistics(model: nn.Module) -> Iterator[None]:
    """Let every ``BlendedBatchNorm`` of a model normalise with its running statistics alone, and keep them as they are.

    For a network that predicts with what it has tracked so far.
    """
    layers = [module for module in model.modules() if isinstance(module, BlendedBatchNorm)]
    for layer in layers:
        layer.mixing = False
    try:
        yield
    finally:
        for layer in layers:
            layer.mixing = True


def track_with_momentum(model: nn.Module, share: float) -> list[_BatchNorm]:
    """Make torch's own moving average take ``share`` of each batch's (unbiased) statistics, in training mode.

    Returns:
        The BatchNorm layers, in the order of the model.

    Raises:
        ValueError: as ``blend_statistics``.
    """
    _check_share(share)
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for layer in layers:
        _running_statistics(layer)
        layer.momentum = share
    return layers


def _replace_layers(model: nn.Module, other: Callable[[_BatchNorm], nn.Module]) -> bool:
    """Put another layer in the place, or all places, of every BatchNorm layer; say whether there is any."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    made = {id(layer): other(layer) for layer in layers}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if id(module) in made:
            parent, _, child = name.rpartition(".")
            model.get_submodule(parent).register_module(child, made[id(module)])
    return bool(made)


def _running_statistics(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    mean, var = layer.running_mean, layer.running_var
    if not isinstance(mean, Tensor) or not isinstance(var, Tensor):
        raise ValueError("a BatchNorm layer of the backbone has no running statistics to mix with the batch's")
    return mean, var


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"the share of the batch in the BatchNorm statistics must be in [0, 1], got {share}")

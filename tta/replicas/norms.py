"""Normalisation layers of several replicas as one layer, and how the images of the replicas lie in its batch.

- ``Blocks``: replica after replica; each layer works on its own block. Any layer, any memory format.
- ``Interleaved``: the first image of each replica, then the second of each. Then the channels of all replicas are the
  channels of one larger image, without a copy: BatchNorm and GroupNorm of all replicas are one kernel of torch's own.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tta.methods.batchstatistics import TORCHS_OWN, CurrentBatchNorm

KNOWN = (*TORCHS_OWN, CurrentBatchNorm.__module__)
"""Layers from here compute what their kind says, also when they are made wider."""


class Layout(ABC):
    """How the images of R replicas lie in one batch.

    Args:
        replicas: R.
    """

    def __init__(self, replicas: int) -> None:
        self.replicas = replicas
        self.total = 0

    def join(self, images: Sequence[Tensor]) -> Tensor:
        """Make one batch (R * N, 3, H, W) of R times (N, 3, H, W)."""
        self.total = self.replicas * len(images[0])
        return self.arrange(images)

    def check(self, x: Tensor) -> None:
        """Make sure that the first dimension is that of the images.

        Raises:
            ValueError: if it is another one, as in a layer that works on patches of all images at once.
        """
        if len(x) != self.total:
            raise ValueError(f"a normalisation layer is given {len(x)} rows for {self.total} images")

    @abstractmethod
    def arrange(self, values: Sequence[Tensor]) -> Tensor:
        """Bring R times (N, ...) together as (R * N, ...)."""

    @abstractmethod
    def split(self, values: Tensor) -> list[Tensor]:
        """Take (R * N, ...) apart into R times (N, ...)."""

    @abstractmethod
    def norm(self, layers: Sequence[nn.Module]) -> nn.Module:
        """Make one layer of those of all replicas."""


class Blocks(Layout):
    """Replica after replica."""

    def arrange(self, values: Sequence[Tensor]) -> Tensor:
        """See ``Layout``."""
        return torch.cat(list(values))

    def split(self, values: Tensor) -> list[Tensor]:
        """See ``Layout``."""
        return list(values.chunk(self.replicas))

    def norm(self, layers: Sequence[nn.Module]) -> nn.Module:
        """See ``Layout``."""
        return Separate(self, layers)


class Interleaved(Layout):
    """The first image of each replica, then the second of each, and so on."""

    def arrange(self, values: Sequence[Tensor]) -> Tensor:
        """See ``Layout``."""
        return torch.stack(list(values), 1).flatten(0, 1).contiguous()  # channels last would be copied by each layer

    def split(self, values: Tensor) -> list[Tensor]:
        """See ``Layout``."""
        return list(values.unflatten(0, (-1, self.replicas)).unbind(1))

    def norm(self, layers: Sequence[nn.Module]) -> nn.Module:
        """See ``Layout``."""
        first = layers[0]
        if type(first).__module__.startswith(KNOWN):
            if isinstance(first, _BatchNorm | nn.GroupNorm):
                return Wide(self, layers)
            if type(first).__name__ == "LayerNorm":
                return WideLayerNorm(self, layers)
        return Separate(self, layers)


class Separate(nn.Module):
    """Layers of which each works on the images of its own replica."""

    def __init__(self, layout: Layout, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layout = layout
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (R * N, ...)."""
        self.layout.check(x)
        parts = self.layout.split(x)
        return self.layout.arrange([layer(part) for layer, part in zip(self.layers, parts, strict=True)])


class Joined(nn.Module):
    """Layers whose scales and shifts lie in one tensor each: (R * C,), of which each replica's own are a part.

    The replicas' parameters stay what they are to their methods and optimizers; they only lie elsewhere.
    """

    def __init__(self, layout: Layout, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layout = layout
        self.own: dict[str, list[nn.Parameter]] = {}
        for name, first in layers[0].named_parameters(recurse=False):
            own = self.own[name] = [layer.get_parameter(name) for layer in layers]
            joined = nn.Parameter(torch.cat([p.detach().flatten() for p in own]), any(p.requires_grad for p in own))
            for parameter, part in zip(own, joined.detach().chunk(len(own)), strict=True):
                parameter.data = part.view_as(first)
            self.register_parameter(name, joined)

    def hand_out(self) -> None:
        """After the backward pass, give each replica's parameters their part of the gradients."""
        for name, own in self.own.items():
            joined = self.get_parameter(name)
            if joined.grad is None:
                continue
            for parameter, part in zip(own, joined.grad.chunk(len(own)), strict=True):
                if parameter.requires_grad:
                    parameter.grad = part.view_as(parameter)
            joined.grad = None


class Wide(Joined):
    """BatchNorm or GroupNorm of all replicas as one layer, on images that have the channels of all of them."""

    def __init__(self, layout: Layout, layers: Sequence[nn.Module]) -> None:
        super().__init__(layout, layers)
        first = layers[0]
        wide = copy.deepcopy(first, {id(p): None for p in first.parameters(recurse=False)})
        for name in self.own:
            wide.register_parameter(name, self.get_parameter(name))
        for name, buffer in first.named_buffers(recurse=False):
            if buffer.ndim:  # running statistics, but not the count of batches
                wide.register_buffer(name, torch.cat([layer.get_buffer(name) for layer in layers]))
        for size in ("num_features", "num_groups", "num_channels"):
            if hasattr(wide, size):
                setattr(wide, size, len(layers) * getattr(wide, size))
        self.wide = wide

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N * R, C, ...)."""
        self.layout.check(x)
        _, channels, *pixels = x.shape
        return self.wide(x.contiguous().view(-1, self.layout.replicas * channels, *pixels)).view(x.shape)


class WideLayerNorm(Joined):
    """LayerNorm of all replicas, which normalise alike, and differ in scale and shift alone."""

    def __init__(self, layout: Layout, layers: Sequence[Any]) -> None:
        super().__init__(layout, layers)
        self.shape = layers[0].normalized_shape
        self.eps = layers[0].eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N * R, ..., *shape)."""
        self.layout.check(x)
        y = nn.functional.layer_norm(x, self.shape, eps=self.eps).unflatten(0, (-1, self.layout.replicas))
        spread = (self.layout.replicas, *[1] * (x.ndim - 1 - len(self.shape)), *self.shape)
        if "weight" in self.own:
            y = y * self.get_parameter("weight").view(spread)
        if "bias" in self.own:
            y = y + self.get_parameter("bias").view(spread)
        return y.flatten(0, 1)

"""Images in arrays: in memory, memory-mapped, or whole on the device."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from tta.streams.types import LoadedImages


class ArrayImages:
    """Images in an array of uint8, in memory or memory-mapped.

    Args:
        array: (N, H, W, 3).
        channels_first: it is (N, 3, H, W) instead.
    """

    def __init__(self, array: np.ndarray, channels_first: bool = False) -> None:
        self.array = array
        self.channels_first = channels_first

    def __call__(self, index: Tensor) -> LoadedImages:
        """Read the images of these indices, as uint8 (n, 3, H, W), in memory as they are in the array."""
        # NumPy lets other threads go on meanwhile, but indexes a memory map, as such, slowly.
        images = torch.from_numpy(np.take(np.asarray(self.array), index.numpy(), axis=0))
        return LoadedImages(images if self.channels_first else images.permute(0, 3, 1, 2), torch.arange(len(index)))

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return self.array.shape[2]

    @property
    def is_complete(self) -> bool:
        """Whether all images are in the array: none has to be looked for elsewhere."""
        return True

    def cache_key(self, index: Tensor) -> str:
        """Name the images of these indices by their pixels."""
        return hashlib.sha256(np.take(np.asarray(self.array), index.numpy(), axis=0).data).hexdigest()

    def on(self, device: torch.device) -> DeviceImages:
        """Give the same images, to be held on a device: once, however many runs read them at the same time."""
        held = _on_devices.setdefault(self, WeakValueDictionary())
        images = held.get(device)
        if images is None:
            images = held[device] = self._on(device)
        return images

    def _on(self, device: torch.device) -> DeviceImages:
        return DeviceImages(self.array, device, self.channels_first)


class CachedImages(ArrayImages):
    """Images of a cache; those that are not in it are read from their source.

    Args:
        array: see ``ArrayImages``.
        channels_first: see ``ArrayImages``.
        rows: int64 (N,): the place in the array of each sample; -1 for those that are not in it.
        needed: int64: the samples that may be asked for.
        source: reads the others.
    """

    def __init__(self, array: np.ndarray, channels_first: bool, rows: Tensor, needed: Tensor, source: Any) -> None:
        super().__init__(array, channels_first)
        self.rows = rows
        self.needed = needed
        self.source = source

    def __call__(self, index: Tensor) -> LoadedImages:
        """Read the images of these indices, uint8 (n, 3, size, size), in memory as the source gives them."""
        rows = self.rows[index]
        (there,), (missing,) = torch.where(rows >= 0), torch.where(rows < 0)
        cached = super().__call__(rows[there]).images
        if not len(missing):
            return LoadedImages(cached, there)
        images, kept, skipped = self.source(index[missing])
        if not len(images):
            return LoadedImages(cached, there, skipped)
        kept, order = torch.cat([there, missing[kept]]).sort()
        together = torch.cat([cached, images])
        return LoadedImages(torch.empty_like(together).copy_(together[order]), kept, skipped)

    @property
    def is_complete(self) -> bool:
        """Whether all images that may be asked for are in the array."""
        return bool((self.rows[self.needed] >= 0).all())

    def _on(self, device: torch.device) -> DeviceImages:
        return DeviceImages(self.array, device, self.channels_first, self.rows)


class DeviceImages:
    """Images that lie on a device, whole, from the first time one is asked for.

    Args:
        array: see ``ArrayImages``.
        device: where they are held.
        channels_first: see ``ArrayImages``.
        rows: int64 (N,): the place in the array of each sample; by default its own number.
    """

    def __init__(
        self, array: np.ndarray, device: torch.device, channels_first: bool = False, rows: Tensor | None = None
    ) -> None:
        self.array = array
        self.device = device
        self.channels_first = channels_first
        self.rows = rows

    def __call__(self, index: Tensor) -> LoadedImages:
        """Pick the images of these indices on the device; nothing but the indices crosses to it."""
        rows = index if self.rows is None else self.rows[index]
        images = self._images.index_select(0, rows.to(self.device, non_blocking=True))
        return LoadedImages(images if self.channels_first else images.permute(0, 3, 1, 2), torch.arange(len(index)))

    @cached_property
    def _images(self) -> Tensor:
        return torch.tensor(self.array, device=self.device)


# Not in the images themselves, which are sent to processes that read.
_on_devices: WeakKeyDictionary[ArrayImages, WeakValueDictionary[torch.device, DeviceImages]] = WeakKeyDictionary()

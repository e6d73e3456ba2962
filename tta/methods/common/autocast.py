"""Autocast and gradient mode, whatever the caller has chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def is_fp16_autocast(device: torch.device) -> bool:
    """Return whether autocast computes in float16 on this kind of device now."""
    return torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) is torch.float16


@contextmanager
def gradients(device: str) -> Iterator[None]:
    """Record gradients within the block, whatever mode the caller is in; ``device`` is a kind, as ``cuda``."""
    # Autocast would go on using its copies of the weights after an update; without its cache it makes new ones.
    autocast = torch.autocast(device, enabled=torch.is_autocast_enabled(device), cache_enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), autocast:
        yield

"""Finds, on a CPU, the operations for which a GPU would have to be waited for, or that have to do with two devices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

ANSWERED_ON_THE_HOST = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")


class DeviceQuestions(TorchDispatchMode):
    """Within the block, notes the operations whose result or shape the host needs."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        by_mask = name.startswith("index") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], list | tuple) else ())
        )
        if by_mask or name in ANSWERED_ON_THE_HOST:
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


def crossings(step: Callable[[Tensor], Tensor], images: Tensor) -> list[str]:
    """Name the operations of a second step that have to do with two devices.

    Tensors on "meta" have a device and a shape, but no values: a step that asks for one raises.
    """
    step(images)  # makes what there is to make
    with _Crossings() as noted:
        assert step(images).device == images.device
    return noted.seen


class _Crossings(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        devices = {value.device.type for value in tree_iter((args, kwargs, made)) if isinstance(value, Tensor)}
        if len(devices) > 1:
            self.seen.append(func.__name__)
        return made


def without_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out autocast, which "meta" does not have."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)

"""Finds, on a CPU, the operations for which a GPU would have to be waited for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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

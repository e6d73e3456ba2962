"""Choice of device and precision."""

from __future__ import annotations

import torch

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` into a device that is there.

    Raises:
        ValueError: for another name, or a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, number = str(name).partition(":")
    if kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not number.isdecimal())):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:<number>, got {name!r}")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            there = f"cuda:0 to cuda:{count - 1}" if count else "none"
            raise ValueError(
                f"device={name}: torch {torch.__version__} sees these CUDA devices: {there}; use device=cpu"
            )
    return torch.device(name)


def describe_device(device: torch.device) -> str:
    """Name the device as results record it."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"


def choose_precision(name: str) -> torch.dtype | None:
    """Return the autocast type of ``fp32`` (none) or ``bf16``; ``ValueError`` for another name."""
    if name not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {name!r}")
    return PRECISIONS[name]

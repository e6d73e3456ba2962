"""Choice of device, precision and memory format."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class Precision:
    """In what numbers a network computes.

    Args:
        dtype: for autocast, ``None`` for float32 throughout.
        tf32: let a GPU take products of float32 numbers rounded to 10 bits after the point. Unless it is told
            otherwise, torch does so in convolutions.
    """

    dtype: torch.dtype | None = None
    tf32: bool = False

    def autocast(self, device: torch.device) -> torch.autocast:
        """Compute so, on this device, within the context; a backward pass behind it has the same choice of TF32."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32
        return torch.autocast(device.type, self.dtype, enabled=self.dtype is not None)


CPU = torch.device("cpu")
FP32 = Precision()
PRECISIONS = {
    "fp32": FP32,
    "tf32": Precision(tf32=True),
    "bf16": Precision(torch.bfloat16),
    "fp16": Precision(torch.float16),
}


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
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'s' if threads > 1 else ''})"


def device_digest(device: torch.device) -> str:
    """Name what computes the same bits."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def choose_precision(name: str, device: torch.device) -> Precision:
    """Turn ``fp32``, ``tf32``, ``bf16`` or ``fp16`` into a precision that the device has.

    Raises:
        ValueError: for another name, or TF32 on a CPU, which has none.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {name!r}")
    if name == "tf32" and device.type == "cpu":
        raise ValueError("precision=tf32 is of a GPU's tensor cores: on a CPU take fp32 or bf16")
    return PRECISIONS[name]


def to_device(backbone: ModuleT, device: torch.device) -> ModuleT:
    """Bring a backbone, in place, to a device, and its convolutions to the memory format that is faster there.

    On a CPU that is channels-last: images may have any format, and what the convolutions make of them is channels-last
    from the first on. Only the order of sums differs. On a GPU the format stays what it is, as long as nobody has
    measured there.
    """
    if device.type == "cpu" and supports_channels_last(backbone):
        backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has no type for it
    return backbone.to(device)


def supports_channels_last(model: nn.Module) -> bool:
    """Whether a CPU can compute a model's gradients on channels-last images.

    torch 2.11 crashes there in the backward pass of a GroupNorm whose input is channels-last and needs no gradient.
    """
    return not any(isinstance(module, nn.GroupNorm) for module in model.modules())


def tune_malloc() -> bool:
    """Have this process keep the memory of tensors that are gone for those to come; nothing else changes.

    The C library hands blocks above 32 MB, which is one batch of float images, back to the system at once, and gets
    them anew page by page, which takes a CPU a good part of a forward pass. The price is a higher peak of memory, as
    the gaps between tensors are not given back.

    Returns:
        Whether the C library can be told so; glibc can.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of the options in malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    wishes = ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**26))
    return all(mallopt(option, value) == 1 for option, value in wishes)

"""Plain attributes of a module as state, e.g. a running mean in a list: copied for ``reset``, and saved as data.

They are pickled, but for tensors, which are kept beside, and for what the module registers (parameters, buffers,
submodules, optimizers ...), which is referred to by name: an attribute that lists parameters lists the same ones
afterwards. What comes from a file may hold containers, numbers, NumPy arrays, random generators and objects of classes
that are defined beside the module: anything else is refused before it is called.
"""

from __future__ import annotations

import collections
import functools
import io
import pickle
import random
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from tta.utils.validation import ComponentError

HELD = (Optimizer, GradScaler, torch.Generator)
"""What has a state of its own."""

CODE = (FunctionType, BuiltinFunctionType, MethodType, ModuleType, functools.partial, type)
"""What has none."""

_MODULE_ATTRIBUTES = {*vars(nn.Module()), "_compiled_call_impl", "_initial", "diagnostics"}
_SAFE_TYPES: tuple[type, ...] = (set, frozenset, bytearray, complex, slice, range, random.Random)
_SAFE_TYPES += (collections.deque, collections.OrderedDict, collections.Counter, collections.defaultdict)
_SAFE = {(kind.__module__, kind.__qualname__) for kind in _SAFE_TYPES}
_SAFE_NUMPY = {
    *("ndarray", "dtype", "_reconstruct", "scalar", "_frombuffer"),
    *("RandomState", "Generator", "PCG64", "PCG64DXSM", "MT19937", "SFC64", "Philox", "SeedSequence"),
    *("__randomstate_ctor", "__generator_ctor", "__bit_generator_ctor", "__pyx_unpickle_SeedSequence"),
}

Saved = dict[str, Any]


def save_attributes(module: nn.Module) -> Saved:
    """Copy the plain attributes of a module.

    Raises:
        ComponentError: if one cannot be copied; names it.
    """
    values = {name: value for name, value in vars(module).items() if _is_plain(name, value)}
    try:
        return _dump(module, values)
    except Exception as error:  # whatever the objects raise that cannot be pickled
        for name, value in values.items():
            try:
                _dump(module, {name: value})
            except Exception as reason:
                raise ComponentError(
                    f"{type(module).__name__}.{name} holds a {type(value).__name__} that cannot be kept for reset and "
                    f"resume ({reason}): keep it as a buffer, a parameter, an attribute of its own, or outside"
                ) from reason
        raise error


def load_attributes(module: nn.Module, saved: Saved, trusted: bool) -> None:
    """Give a module the plain attributes that ``save_attributes`` copied of it, and no others.

    Args:
        module: like the one they were copied from.
        saved: by ``save_attributes``.
        trusted: they come from this process; not from a file, where only what is known to be data is read.

    Raises:
        pickle.UnpicklingError: if a file asks for something else.
    """
    values = _Unpickler(module, saved, trusted).load()
    for name in [name for name, value in vars(module).items() if _is_plain(name, value) and name not in values]:
        delattr(module, name)
    vars(module).update(values)


def _is_plain(name: str, value: Any) -> bool:
    return name not in _MODULE_ATTRIBUTES and not isinstance(value, (*HELD, *CODE))


def _registered(module: nn.Module) -> dict[str, Any]:
    """Name what a module registers, and so has a state of its own."""
    held = {f"held {name}": value for name, value in vars(module).items() if isinstance(value, HELD)}
    modules = {f"module {name}": value for name, value in module.named_modules()}
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {**held, **modules, **{f"tensor {name}": value for name, value in tensors.items()}}


def _dump(module: nn.Module, values: Mapping[str, Any]) -> Saved:
    pickler = _Pickler(module)
    pickler.dump(values)
    content = torch.frombuffer(bytearray(pickler.file.getvalue()), dtype=torch.uint8)
    return {"content": content, "tensors": pickler.tensors}


class _Pickler(pickle.Pickler):
    def __init__(self, module: nn.Module) -> None:
        self.file = io.BytesIO()
        self.tensors: list[Tensor] = []
        self._known: dict[int, tuple[str, Any]] = {
            id(value): ("registered", name) for name, value in _registered(module).items()
        }
        super().__init__(self.file, protocol=4)

    def persistent_id(self, value: Any) -> tuple[str, Any] | None:
        if id(value) in self._known:
            return self._known[id(value)]
        if isinstance(value, (nn.Module, *HELD)):
            raise TypeError(f"a {type(value).__name__} within it would not be saved")
        if not isinstance(value, Tensor):
            return None
        if value.requires_grad and value.is_leaf:
            raise TypeError("a tensor that takes gradients must be an nn.Parameter")
        self._known[id(value)] = ("tensor", len(self.tensors))
        self.tensors.append(value.detach().clone())
        return self._known[id(value)]


class _Unpickler(pickle.Unpickler):
    def __init__(self, module: nn.Module, saved: Saved, trusted: bool) -> None:
        super().__init__(io.BytesIO(saved["content"].numpy().tobytes()))
        self._registered = _registered(module)
        self._tensors = [tensor.clone() for tensor in saved["tensors"]]
        self._trusted = trusted
        self._own_modules = {kind.__module__ for kind in type(module).__mro__} - {"builtins"}

    def persistent_load(self, key: tuple[str, Any]) -> Any:
        kind, which = key
        return self._tensors[which] if kind == "tensor" else self._registered[which]

    def find_class(self, module: str, name: str) -> Any:
        if self._trusted or (module, name) in _SAFE:
            return super().find_class(module, name)
        if module.partition(".")[0] == "numpy" and name in _SAFE_NUMPY:
            return super().find_class(module, name)
        if (module.startswith("tta.methods.") or module in self._own_modules) and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"it holds a {module}.{name}, which is not read from files")

"""What a method changes from batch to batch: kept in one snapshot, restored by ``reset``, saved by ``state_dict``."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tta.methods.common.attributes import HELD, load_attributes, save_attributes
from tta.objectives import Objective


class BufferList(nn.Module):
    """Tensors that never change, as buffers that move with the module and are not saved."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        for number, tensor in enumerate(tensors):
            self.register_buffer(str(number), tensor.detach().clone(), persistent=False)

    def __iter__(self) -> Iterator[Tensor]:
        return self.buffers()


class ResettableModule(nn.Module):
    """A module around a backbone that goes back to the state that it was made with, and goes on from a saved one.

    Everything but the frozen backbone is state: the parameters that take gradients, those of copies of the backbone,
    buffers, optimizers, ``torch.Generator`` objects, gradient scalers and objectives that are held as attributes, and
    plain attributes (numbers, lists, dictionaries, NumPy arrays ...). Tensors are restored in place. A buffer that is
    empty at first may be replaced by one of any size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.images_seen = 0
        self.batches_seen = 0
        self.diagnostics: dict[str, Tensor] = {}
        self._initial: dict[str, Any] | None = None

    def reset(self) -> None:
        """Restore, in place, the state that the method had when it was made."""
        self._snapshot_once()
        assert self._initial is not None
        with torch.no_grad():
            current = self._tensors()
            for name, tensor in self._initial["tensors"].items():
                current[name].copy_(tensor)
        for name in self._initial["empty"]:
            setattr(self, name, getattr(self, name).new_empty(0))
        for module in self.modules():
            if isinstance(module, Objective):
                module.reset()
        self._set_extra_state(self._initial["extra"], trusted=True)
        self.zero_grad(set_to_none=True)
        self.diagnostics = {}

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state beside parameters and buffers. Called by ``state_dict``.

        Raises:
            ComponentError: if an attribute cannot be saved; names it.
        """
        held = {
            name: value.get_state() if isinstance(value, torch.Generator) else value.state_dict()
            for name, value in vars(self).items()
            if isinstance(value, HELD)
        }
        return {"held": held, "attributes": {name: save_attributes(module) for name, module in self._owners()}}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what ``get_extra_state`` gave. Called by ``load_state_dict``.

        Raises:
            pickle.UnpicklingError: if the state holds something that is not read from files.
        """
        self._set_extra_state(state, trusted=False)

    def _set_extra_state(self, state: dict[str, Any], trusted: bool) -> None:
        for name, module in self._owners():
            load_attributes(module, state["attributes"][name], trusted)
        for name, saved in state["held"].items():
            holder = getattr(self, name)
            if isinstance(holder, torch.Generator):
                holder.set_state(saved)
            else:
                holder.load_state_dict(copy.deepcopy(saved))

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Continue from a saved state; ``reset`` still goes back to the state the method was made with."""
        self._snapshot_once()
        return super().load_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A fresh object's buffers that are empty at first take the shape of the saved ones.
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if buffer is not None and saved is not None and saved.shape != buffer.shape:
                self._buffers[name] = buffer.new_empty(saved.shape, dtype=saved.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _owners(self) -> Iterator[tuple[str, nn.Module]]:
        """Name the modules whose plain attributes are state: this one and its objectives, but no networks."""
        for name, module in self.named_modules():
            if module is self or isinstance(module, Objective):
                yield name, module

    def _tensors(self) -> dict[str, Tensor]:
        """What may change: adapted parameters, those of copies of the backbone (a moving average), and buffers."""
        adapted = {n: p for n, p in self.named_parameters() if p.requires_grad or not n.startswith("backbone.")}
        return {**adapted, **dict(self.named_buffers())}

    def _snapshot_once(self) -> None:
        """Take the snapshot that ``reset`` restores, the first time anything could change."""
        if self._initial is None:
            tensors = {name: t.detach().clone() for name, t in self._tensors().items() if t.numel()}
            empty = [name for name, t in self._buffers.items() if t is not None and not t.numel()]
            self._initial = {"tensors": tensors, "empty": empty, "extra": copy.deepcopy(self.get_extra_state())}

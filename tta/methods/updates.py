"""Updates that depend on what the batch holds, without asking the device for it.

A method that decides on the host whether to update waits for the GPU in every step. Here the update is made, and what
it changed is put back where the condition, a boolean scalar tensor, does not hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tta.objectives import Objective


def selected_mean(losses: Tensor, selected: Tensor) -> Tensor:
    """Mean over the selected samples; 0, with a gradient of 0, if there are none.

    Args:
        losses: (N,).
        selected: (N,), boolean.
    """
    return torch.where(selected, losses, 0).sum() / selected.sum().clamp(min=1)


@torch.no_grad()
def step_where(condition: Tensor, optimizer: Optimizer) -> None:
    """``optimizer.step()`` if the condition holds, else nothing: neither parameters nor moments change.

    Args:
        condition: boolean, ().
        optimizer: one whose state begins at zero, as that of SGD (without dampening) and Adam does.
    """
    before: State = {}
    for tensors in _alike(_tensors(optimizer)):
        before.update(_copies(tensors))
    optimizer.step()
    for tensors in _alike(_tensors(optimizer)):
        new = list(tensors.values())
        old = together(before[key] if key in before else torch.zeros_like(t) for key, t in tensors.items())
        torch._foreach_copy_(new, apart(torch.where(condition, together(new), old), new))


@torch.no_grad()
def restore_where(
    condition: Tensor, tensors: Iterable[Tensor], initial: Iterable[Tensor], optimizer: Optimizer | None = None
) -> None:
    """Where the condition holds, copy ``initial`` into ``tensors``, and forget the optimizer's moments."""
    for tensor, start in zip(tensors, initial, strict=True):
        tensor.copy_(torch.where(condition, start, tensor))
    if optimizer is not None:
        for (_, name), tensor in _tensors(optimizer).items():
            if name:
                tensor.copy_(torch.where(condition, 0, tensor))


@torch.no_grad()
def forget_where(condition: Tensor, objective: Objective) -> None:
    """``objective.reset()`` if the condition holds, else nothing."""
    learnt = [buffer.clone() for buffer in objective.buffers()]
    objective.reset()
    for buffer, kept in zip(objective.buffers(), learnt, strict=True):
        buffer.copy_(torch.where(condition, buffer, kept))


@contextmanager
def ascended(parameters: Iterable[nn.Parameter], rho: float) -> Iterator[None]:
    """Within the block, parameters stand where the loss is larger: up their gradients by a length of ``rho``.

    The gradients of all parameters together are one vector, ``g``, and the move is ``rho g / (|g| + 1e-12)``
    (sharpness-aware minimisation); none where all gradients are zero. Afterwards the parameters are exactly, to the
    last bit, what they were; their gradients are those of before until somebody clears them.
    """
    moved: list[Tensor] = [parameter for parameter in parameters if parameter.grad is not None]
    with torch.no_grad():
        before = [parameter.clone() for parameter in moved]
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_add_(moved, list(torch._foreach_mul(gradients, rho / (length + 1e-12))))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(moved, before)


@torch.no_grad()
def average_(average: Iterable[Tensor], new: Iterable[Tensor], share: float) -> None:
    """Move each tensor of an exponential moving average towards the new one, in place: ``share`` of the new one."""
    torch._foreach_lerp_(list(average), list(new), share)


State = dict[tuple[nn.Parameter, str], Tensor]


def _alike(tensors: State) -> list[State]:
    """Sort tensors by their type and device."""
    kinds: dict[tuple[torch.dtype, torch.device], State] = {}
    for key, tensor in tensors.items():
        kinds.setdefault((tensor.dtype, tensor.device), {})[key] = tensor
    return list(kinds.values())


def _copies(tensors: State) -> State:
    return dict(zip(tensors, apart(together(tensors.values()), tensors.values()), strict=True))


def together(tensors: Iterable[Tensor]) -> Tensor:
    """Copy the values of tensors into one row: a GPU is then asked once, however many layers there are."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def apart(row: Tensor, like: Iterable[Tensor]) -> list[Tensor]:
    """Take a row apart into tensors of these shapes."""
    like = list(like)
    parts = row.split([tensor.numel() for tensor in like])
    return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]


def _tensors(optimizer: Optimizer) -> State:
    """Parameters (named "") and the tensors of their state."""
    return {
        (parameter, name): tensor.detach()
        for group in optimizer.param_groups
        for parameter in group["params"]
        for name, tensor in {"": parameter, **optimizer.state.get(parameter, {})}.items()
        if isinstance(tensor, Tensor)
    }

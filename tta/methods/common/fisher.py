"""Fisher information: how much each parameter of a model matters for its predictions on clean images."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tta.streams.datasets.source_images import CleanImages
from tta.utils.paths import atomic_file, cache_dir

RECIPE = 1
"""Raised when the computation below changes, so that a cached result of the old one is never taken."""


def fisher_information(model: nn.Module, images: CleanImages) -> dict[str, Tensor]:
    """Take the diagonal Fisher information of the parameters that take gradients, in the model's present mode.

    As EATA's official code does (arXiv:2204.02610): the squared gradient of the mean cross-entropy of each *batch* (not
    of each sample) on the model's own predictions, averaged over the batches. No labels are used.

    It is computed once, on the model's device, and kept in the cache under the name of all that it follows from: the
    model, the images, their batches, the parameters.

    Returns:
        Tensors of the parameters' shapes, by name.
    """
    from safetensors.torch import save_file

    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    path = cache_dir() / f"fisher-{_digest(model, images, parameters)}.safetensors"
    found = _read(path, parameters)
    if found is None:
        print(f"EATA, once: Fisher information of {len(images)} clean images, to be kept at {path}", file=sys.stderr)
        found = _compute(model, images, parameters)
        with atomic_file(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in found.items()}, str(temporary))
    return found


def _compute(model: nn.Module, images: CleanImages, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    like = next(iter(parameters.values()))
    squares = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
    batches = 0
    # Whatever the caller's gradient mode and precision.
    with torch.enable_grad(), torch.autocast(like.device.type, enabled=False):
        for batch in images:
            logits = model(batch.to(like.device).to(like.dtype).div_(255).contiguous())  # see Method.forward
            loss = F.cross_entropy(logits, logits.argmax(-1))
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
            torch._foreach_addcmul_(list(squares.values()), gradients, gradients)
            batches += 1
    return {name: square / batches for name, square in squares.items()}


def _read(path: Path, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor] | None:
    """Read a cached result; ``None`` if there is none, or the file is broken."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except (OSError, SafetensorError):
        return None
    if {name: t.shape for name, t in found.items()} != {name: p.shape for name, p in parameters.items()}:
        return None
    return {name: found[name].to(p.device) for name, p in parameters.items()}


def _digest(model: nn.Module, images: CleanImages, parameters: Mapping[str, nn.Parameter]) -> str:
    content = hashlib.sha256(repr((RECIPE, images.digest, images.batch_size, list(parameters))).encode())
    content.update(repr(model).encode())  # the same weights can be of networks that compute different things with them
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        content.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        content.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()[:16]

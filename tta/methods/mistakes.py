"""What is easily got wrong in a method of one's own, told in the method's words instead of torch's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tta.checks import PartError

NO_GRADIENT = {
    "backward through the graph a second time": "the loss hangs on a step before this one, whose graph is gone: what "
    "is kept from batch to batch must be detached, as in self.mean = mean.detach()",
    "does not require grad": "the loss hangs on nothing that adapts: it, or what it is made of, is detached or an "
    "argmax, or the adapted parameters are not in the backbone's forward pass",
}
"""What torch says of a loss that has no gradient, and what a user can do about it."""


def backward(loss: Tensor, name: str) -> None:
    """``loss.backward()``, in the method of this name.

    Raises:
        PartError: if the loss hangs on a step before this one, or on nothing that adapts.
    """
    try:
        loss.backward()
    except RuntimeError as error:
        why = next((why for words, why in NO_GRADIENT.items() if words in str(error)), None)
        if why is None:
            raise
        raise PartError(f"{name}: {why}") from error


def checked_logits(logits: Any, size: int, name: str) -> Tensor:
    """Give what ``step`` of the method of this name has returned, if it is logits of so many images.

    Raises:
        PartError: if it is not.
    """
    if isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == size:
        return logits
    if isinstance(logits, Tensor):
        raise PartError(
            f"{name}.step must return logits (N, C), a row for each of the {size} images, it returned a tensor "
            f"{tuple(logits.shape)}"
        )
    raise PartError(
        f"{name}.step must give a tensor of logits (N, C), it gave {type(logits).__name__}: wrap it in a module "
        "that returns the logits alone, if it is the backbone's; otherwise end step with `return logits`"
    )

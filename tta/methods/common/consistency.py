"""How far two predictions of the same images are from each other."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from tta.methods.common.losses import upcast


def consistency(logits: Tensor, target: Tensor, symmetric: bool = False) -> Tensor:
    """Cross-entropy ``-sum_i q_i log p_i`` of a prediction ``p`` with another one, ``q``, in the place of the label.

    Args:
        logits: of ``p``, (N, C).
        target: logits of ``q``, (N, C); gradients flow through them too.
        symmetric: the mean of that and the same with ``p`` and ``q`` exchanged.

    Returns:
        (N,), in nats, float32 (float64 for logits of float64).
    """
    z, target = upcast(logits), upcast(target)
    one_way = cross_entropy(z, target.softmax(-1), reduction="none")
    return (one_way + cross_entropy(target, z.softmax(-1), reduction="none")) / 2 if symmetric else one_way

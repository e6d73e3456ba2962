"""COME: the entropy of an opinion that may be uncertain."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tta.objectives.base import Objective


class COME(Objective):
    """Conservative entropy (COME, arXiv:2410.10894): the entropy of an opinion that keeps a share for "do not know".

    Evidence ``exp(z_i)`` for each class gives it the belief ``exp(z_i) / S``, and the uncertainty has ``C / S``, with
    ``S = sum_i exp(z_i) + C``. That is the softmax of the logits and one more, ``ln C``, so it is computed as such,
    which is stable in any precision. The norm of the logits takes no gradient: the loss turns them, and does not let
    them grow, so that the uncertainty stays about what the source model gave.
    """

    def loss(self, z: Tensor) -> Tensor:
        """Entropy over the C classes and the uncertainty, in [0, ln(C + 1)] nats."""
        norm = torch.linalg.vector_norm(z, dim=-1, keepdim=True).clamp(min=torch.finfo(z.dtype).eps)
        z = z / norm * norm.detach()
        log_p = torch.cat((z, torch.full_like(z[..., :1], math.log(z.shape[-1]))), dim=-1).log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

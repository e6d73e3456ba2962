"""Unsupervised objectives: logits of shape (..., N, C) to one loss per sample, (..., N), in nats.

No model, no optimizer and no labels, so that they serve in any training loop: ``loss = objective(logits).mean()``.

Decoupled Entropy Minimization (arXiv:2511.03256) splits the entropy of ``p = softmax(z)`` into ``T = -sum_i p_i z_i``
(the cluster aggregation driving factor, CADF) and ``Q = logsumexp(z)`` (the gradient mitigation calibrator, GMC):
``H = T + Q`` (eq. 6). The objectives below weigh, normalise or replace the two.
"""

from tta.objectives.adadem import AdaDEM
from tta.objectives.base import Objective, check_logits, clone_objective
from tta.objectives.come import COME
from tta.objectives.dem import CADF, DEM, EM
from tta.objectives.slr import SLR

__all__ = ["CADF", "COME", "DEM", "EM", "SLR", "AdaDEM", "Objective", "check_logits", "clone_objective"]

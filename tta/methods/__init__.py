"""Adaptation methods: ``logits = method(images)`` predicts and adapts."""

from tta.methods.base import Method, use_batch_statistics
from tta.methods.bn_adapt import BNAdapt
from tta.methods.deyo import DeYO
from tta.methods.parameters import ParameterChoice, norm_parameters
from tta.methods.sar import SAR
from tta.methods.source import Source
from tta.methods.tent import Tent

__all__ = [
    "SAR",
    "BNAdapt",
    "DeYO",
    "Method",
    "ParameterChoice",
    "Source",
    "Tent",
    "norm_parameters",
    "use_batch_statistics",
]

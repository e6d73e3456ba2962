"""Adaptation methods: ``logits = method(images)`` predicts and adapts."""

from tta.methods.base import Method, use_batch_statistics
from tta.methods.bn_adapt import BNAdapt
from tta.methods.bn_alpha import BNAlpha
from tta.methods.bn_ema import BNEma
from tta.methods.common.parameters import ParameterChoice, norm_parameters
from tta.methods.cotta import CoTTA
from tta.methods.deyo import DeYO
from tta.methods.eata import EATA
from tta.methods.eta import ETA
from tta.methods.lame import LAME
from tta.methods.memo import MEMO
from tta.methods.rdumb import RDumb
from tta.methods.roid import ROID
from tta.methods.rotta import RoTTA
from tta.methods.sar import SAR
from tta.methods.source import Source
from tta.methods.t3a import T3A
from tta.methods.tent import Tent

__all__ = [
    "EATA",
    "ETA",
    "LAME",
    "MEMO",
    "ROID",
    "SAR",
    "T3A",
    "BNAdapt",
    "BNAlpha",
    "BNEma",
    "CoTTA",
    "DeYO",
    "Method",
    "ParameterChoice",
    "RDumb",
    "RoTTA",
    "Source",
    "Tent",
    "norm_parameters",
    "use_batch_statistics",
]

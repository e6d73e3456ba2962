"""Pretrained classifiers as modules that take images in [0, 1] and give logits.

The normalisation of the weights is folded in, so that no stream and no method has to know it.
"""

from tta.models.backbone import Backbone
from tta.models.robustbench import import_robustbench, robustbench_backbone
from tta.models.timm import timm_backbone

__all__ = ["Backbone", "import_robustbench", "robustbench_backbone", "timm_backbone"]

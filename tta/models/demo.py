r"""The embedded demo backbone: a small ResNet, trained on handwritten digits that the demo stream does not have.

The weights, stored as float16, are the output of this command, on one thread:

    python scripts/train_source.py demo --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 --half --out tta/models/demo.safetensors \
        --kwargs '{"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128], "stem_type": "deep", "stem_width": 8}'

The file's metadata records the options, the seed among them, and the accuracy on the digits of the stream.
"""

from __future__ import annotations

from pathlib import Path

from tta.models.backbone import Backbone
from tta.models.timm import timm_backbone

MODEL_KWARGS = {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128), "stem_type": "deep", "stem_width": 8}
WEIGHTS = Path(__file__).with_name("demo.safetensors")


def backbone() -> Backbone:
    """Load the small ResNet of the demo, 98 % accurate on the clean digits; its weights come with the package."""
    model = timm_backbone(
        "resnet18", checkpoint=str(WEIGHTS), num_classes=10, kwargs=MODEL_KWARGS, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    model.weights_id = f"demo-{model.weights_id}"
    return model

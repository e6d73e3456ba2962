"""Every method on every family of networks: from timm, and the WideResNet of RobustBench."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
import timm
import torch
from torch import nn

from helpers.backbones import CLASSES
from helpers.compositions import composed
from tta.backbones import Backbone, import_robustbench
from tta.cli import CONFIGS
from tta.methods import Method

METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
SMALL = {"memo": ["method.augmentations=2"], "cotta": ["method.augmentations=2"], "eata": ["method.fisher.limit=8"]}


def swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    sizes = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}
    return SwinTransformer(**sizes, num_classes=CLASSES, drop_path_rate=0.2)


def vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return VisionTransformer(**sizes, num_classes=CLASSES, drop_path_rate=0.2)


def wide_resnet() -> nn.Module:
    architectures = import_robustbench("model_zoo.architectures.wide_resnet")
    return architectures.WideResNet(depth=10, widen_factor=1, num_classes=CLASSES)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "ResNet": lambda: timm.create_model("resnet10t", num_classes=CLASSES, drop_path_rate=0.2),
    "ResNet with GroupNorm": lambda: timm.create_model(
        "resnet10t", num_classes=CLASSES, norm_layer=lambda channels, **_: nn.GroupNorm(4, channels)
    ),
    "ViT": vit,
    "ConvNeXt": lambda: timm.create_model("convnext_atto", num_classes=CLASSES, drop_path_rate=0.2),
    "EfficientNet": lambda: timm.create_model("test_efficientnet", num_classes=CLASSES),
    "MobileNet": lambda: timm.create_model("mobilenetv3_small_050", num_classes=CLASSES),
    "Swin": swin,
    "WideResNet of RobustBench": wide_resnet,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_adapts_and_resets(name: str, family: str, demo_cache: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = Backbone(FAMILIES[family](), CLASSES, [0.5] * 3, [0.25] * 3, "test")
    config = composed(f"method={name}", *SMALL.get(name, []))
    method: Method = hydra.utils.instantiate(config.method, backbone=backbone, _convert_="all")
    images = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first = [method(batch) for batch in images]
    assert all(logits.shape == (4, CLASSES) and logits.isfinite().all() for logits in first)
    method.reset()
    assert all(torch.equal(method(batch), logits) for batch, logits in zip(images, first, strict=True))

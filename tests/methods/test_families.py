"""Methods on families of networks: from timm, and the WideResNet of RobustBench."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from helpers.all_methods import METHODS, make_method
from helpers.backbones import CLASSES
from tta.methods import norm_parameters
from tta.models import Backbone, import_robustbench

SMALL = {"img_size": 32, "embed_dim": 16, "num_classes": CLASSES, "drop_path_rate": 0.2}


def swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(**SMALL, patch_size=2, window_size=4, depths=(1, 1), num_heads=(2, 2))


def vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**SMALL, patch_size=8, depth=2, num_heads=2)


def wide_resnet() -> nn.Module:
    architectures = import_robustbench("model_zoo.architectures.wide_resnet")
    return architectures.WideResNet(depth=10, widen_factor=1, num_classes=CLASSES)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: timm.create_model(
        "resnet18", num_classes=CLASSES, drop_path_rate=0.2, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8)
    ),
    "resnet_gn": lambda: timm.create_model(
        "resnet10t", num_classes=CLASSES, norm_layer=lambda channels, **_: nn.GroupNorm(4, channels)
    ),
    "vit": vit,
    "convnext": lambda: timm.create_model("convnext_atto", num_classes=CLASSES, drop_path_rate=0.2),
    "efficientnet": lambda: timm.create_model("test_efficientnet", num_classes=CLASSES),
    "mobilenet": lambda: timm.create_model("mobilenetv3_small_050", num_classes=CLASSES),
    "swin": swin,
    "wide_resnet": wide_resnet,
}
CASES = [
    *((name, family) for family in ("resnet", "vit") for name in METHODS),
    *(("adadem", family) for family in FAMILIES if family not in ("resnet", "vit")),
]
"""Every method with BatchNorm and with LayerNorm, and every family with one method."""


@pytest.mark.usefixtures("demo_cache")
@pytest.mark.parametrize(("name", "family"), CASES)
def test_method__adapts_and_resets_on_a_family(name: str, family: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = Backbone(FAMILIES[family](), CLASSES, [0.5] * 3, [0.25] * 3, "test")
    method = make_method(name, backbone, lr=0.001)
    start = {key: p.detach().clone() for key, p in method.named_parameters()}
    images = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first = [method(batch) for batch in images]
    assert all(logits.shape == (4, CLASSES) and logits.isfinite().all() for logits in first)
    if name == "adadem":
        changed = {key for key, p in method.named_parameters() if not torch.equal(p, start[key])}
        assert changed
        assert changed <= {f"backbone.net.{key}" for key in norm_parameters(backbone.net)}
    method.reset()
    assert all(torch.equal(method(batch), logits) for batch, logits in zip(images, first, strict=True))

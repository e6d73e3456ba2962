"""Methods on families of networks: from timm, and the WideResNet of RobustBench."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import RmsNorm
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from helpers.all_methods import METHODS, make_method
from helpers.backbones import CLASSES
from helpers.errors import raises_naming
from tta.methods import Tent, norm_parameters
from tta.models import Backbone, import_robustbench
from tta.objectives import EM

SMALL = {"img_size": 32, "embed_dim": 16, "num_classes": CLASSES, "drop_path_rate": 0.2}


def swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(**SMALL, patch_size=2, window_size=4, depths=(1, 1), num_heads=(2, 2))


def vit(**options: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**SMALL, patch_size=8, depth=2, num_heads=2, **options)


def instance_norm() -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3, stride=2), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, CLASSES))


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
    "vit_rms": lambda: vit(norm_layer=nn.RMSNorm),
    "vit_timm_rms": lambda: vit(norm_layer=RmsNorm),
    "instance_norm": instance_norm,
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


@pytest.mark.parametrize(("family", "count"), [("vit_rms", 5), ("vit_timm_rms", 5), ("instance_norm", 2)])
def test_norm_parameters__are_found_in_a_family(family: str, count: int) -> None:
    """RMSNorm has a scale alone, an affine InstanceNorm a shift too."""
    assert len(norm_parameters(FAMILIES[family]())) == count


@pytest.mark.parametrize("name", ["RmsNorm2d", "SimpleNorm"])
def test_norm_parameters__newer_layers_are_known_by_name(name: str) -> None:
    layer = type(name, (nn.Module,), {})()
    layer.weight = nn.Parameter(torch.ones(4))
    assert list(norm_parameters(nn.Sequential(layer))) == ["0.weight"]


def test_tent__frozen_batch_norm_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), FrozenBatchNorm2d(8), nn.Flatten())
    backbone = Backbone(net, CLASSES, [0.5] * 3, [0.25] * 3, "test")
    with raises_naming(ValueError, "FrozenBatchNorm2d", "buffers"):
        Tent(backbone, EM(), functools.partial(torch.optim.SGD, lr=0.1))

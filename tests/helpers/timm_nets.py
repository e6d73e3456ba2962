"""Small networks of timm, their files, and repositories of the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

SMALL = "test_efficientnet"
CIFAR_RESNET: dict[str, Any] = {"channels": (8, 8, 8, 8), "layers": (1, 1, 1, 1)}
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
NO_NORMALIZATION: dict[str, Any] = {"mean": [0] * 3, "std": [1] * 3}
PAGE = b"\n<!DOCTYPE html><html><title>Too many requests</title></html>"
REVISION = "0" * 40


def timm_net(classes: int = 10, name: str = SMALL, **kwargs: Any) -> nn.Module:
    """Create a network whose random weights are always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net: nn.Module = timm.create_model(name, num_classes=classes, **kwargs)
    return net.eval()


def cifar_resnet(classes: int = 10) -> nn.Module:
    """ResNet with the stem for 32-pixel images, built here by hand."""
    net: Any = timm_net(classes, "resnet18", **CIFAR_RESNET)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net


def save(net: nn.Module, path: Path) -> str:
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, str(path))
    return str(path)


def normalised(images: Tensor, mean: Any, std: Any) -> Tensor:
    return torch.stack([(images[:, k] - mean[k]) / std[k] for k in range(3)], 1)


def put_in_hub(cache: Path, repository: str, net: nn.Module | None, architecture: str | None = None) -> None:
    """Put a repository into a cache in the layout of huggingface_hub: its weights, its configuration."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(REVISION)
    if net is not None:
        save(net, snapshot / "model.safetensors")
    if architecture is not None:
        settings = {"mean": MEAN, "std": STD, "num_classes": 10, "classifier": "fc", "first_conv": "conv1"}
        settings |= {"input_size": [3, 32, 32], "pool_size": [1, 1]}
        config = {"architecture": architecture, "pretrained_cfg": settings, "model_args": CIFAR_RESNET}
        (snapshot / "config.json").write_text(json.dumps(config))

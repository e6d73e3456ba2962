"""Small backbones with each kind of normalisation layer, deterministic and not trivial."""

from __future__ import annotations

import torch
from torch import nn

CLASSES = 5


def _norm(kind: str, channels: int) -> nn.Module:
    return {
        "batch": lambda: nn.BatchNorm2d(channels),
        "group": lambda: nn.GroupNorm(2, channels),
        "layer": lambda: nn.GroupNorm(1, channels),
        "none": lambda: nn.Identity(),
    }[kind]()


class SmallNet(nn.Module):
    """Two convolutions, dropout, and a last normalisation; running statistics that no batch has."""

    num_classes = CLASSES

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), _norm(kind, 8), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2), _norm(kind, 6)
        )
        self.dropout = nn.Dropout(0.5)
        self.last = nn.LayerNorm(6) if kind == "layer" else nn.Identity()
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.last(self.dropout(self.body(x).relu().mean((2, 3)))))


def small_net(kind: str) -> SmallNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = SmallNet(kind)
        with torch.no_grad():
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.get_buffer("running_mean").copy_(torch.linspace(-0.5, 0.5, module.num_features))
                    module.get_buffer("running_var").fill_(2)
                if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
                    module.weight.add_(torch.linspace(-0.3, 0.3, module.weight.numel()))
                    module.bias.add_(torch.linspace(0.2, -0.2, module.bias.numel()))
            net.head.weight.mul_(8)  # predictions that are neither uniform nor sure
    return net


def some_images(n: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def varied_images(n: int = 8, seed: int = 0) -> torch.Tensor:
    """Images of a colour each, with noise: predictions of several classes, sure ones and unsure ones."""
    generator = torch.Generator().manual_seed(seed)
    colours, noise = torch.rand(n, 3, 1, 1, generator=generator), torch.rand(n, 3, 8, 8, generator=generator)
    return 0.6 * colours + 0.4 * noise


@torch.no_grad()
def accuracy(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of uint8 images (N, 3, H, W) that ``net`` classifies as labelled, in [0, 1]."""
    predicted = torch.cat([net(part.float() / 255).argmax(-1) for part in images.split(500)])
    return (predicted == labels).float().mean().item()

"""``SmallNet("batch")`` written out again in plain torch, for references that share no code with the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

Statistics = Callable[[str, Tensor], tuple[Tensor, Tensor]]


def weights(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers in float64, by name."""
    return {key: value.detach().double().clone() for key, value in net.state_dict().items()}


def forward(w: Mapping[str, Tensor], images: Tensor, statistics: Statistics) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and features (N, D); ``statistics(layer, input)`` gives mean and variance of each channel."""
    h = images.double()
    for conv, norm, stride, padding in (("body.0", "body.1", 1, 1), ("body.3", "body.4", 2, 0)):
        h = functional.conv2d(h, w[f"{conv}.weight"], w[f"{conv}.bias"], stride, padding)
        mean, var = statistics(norm, h)
        h = (h - mean[:, None, None]) / torch.sqrt(var[:, None, None] + 1e-5)
        h = (w[f"{norm}.weight"][:, None, None] * h + w[f"{norm}.bias"][:, None, None]).clamp(min=0)
    features = h.mean((2, 3))
    return features @ w["head.weight"].T + w["head.bias"], features


def source_statistics(w: Mapping[str, Tensor]) -> Statistics:
    return lambda layer, _: (w[f"{layer}.running_mean"], w[f"{layer}.running_var"])


def batch_statistics(h: Tensor, unbiased: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, from sums over one channel at a time."""
    means, variances = [], []
    for channel in h.transpose(0, 1).flatten(1):
        mean = channel.sum() / len(channel)
        means.append(mean)
        variances.append(((channel - mean) ** 2).sum() / (len(channel) - unbiased))
    return torch.stack(means), torch.stack(variances)

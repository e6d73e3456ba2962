"""What the corruptions are for: a real classifier loses as much on ours as on the published ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from helpers.published_images import Published
from tta.corruptions import CORRUPTIONS, corrupt
from tta.models import Backbone

CLOSE, CLOSE_ON_AVERAGE = 0.03, 0.007


@pytest.fixture(scope="module")
def resnet(cifar_resnet18: Backbone) -> Backbone:
    backbone = copy.deepcopy(cifar_resnet18)
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return backbone


@torch.inference_mode()
def accuracy(backbone: Backbone, images: Tensor, labels: Tensor) -> float:
    logits = [backbone(part.contiguous(memory_format=torch.channels_last) / 255) for part in images.split(50)]
    return float((torch.cat(logits).argmax(1) == labels).double().mean())


def corrupt_at_all_severities(clean: Tensor, name: str, seed: int) -> Tensor:
    index = torch.arange(len(clean))
    return torch.cat([corrupt(clean, name, severity, index=index, seed=seed) for severity in range(1, 6)])


@pytest.mark.slow
def test_classifier__loses_as_much_on_published_ones(resnet: Backbone, published: Published) -> None:
    """That the images are alike is what the fast tests show, pixel by pixel and in distribution."""
    clean, labels = published.clean(), published.labels()
    gaps = {}
    for name in CORRUPTIONS:
        theirs = torch.cat([published.corrupted(name, severity) for severity in range(1, 6)])
        expected, ours = accuracy(resnet, theirs, labels), corrupt_at_all_severities(clean, name, 0)
        seen = [expected if torch.equal(ours, theirs) else accuracy(resnet, ours, labels)]
        again = corrupt_at_all_severities(clean, name, 1)
        if not torch.equal(again, ours):  # some draw nothing
            seen.append(accuracy(resnet, again, labels))
        gaps[name] = sum(seen) / len(seen) - expected
    assert {name: gap for name, gap in gaps.items() if abs(gap) > CLOSE} == {}
    assert abs(sum(gaps.values()) / len(gaps)) <= CLOSE_ON_AVERAGE

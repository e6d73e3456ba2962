"""What the corruptions are for: a real classifier loses as much on ours as on the published ones."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tta.backbones import Backbone
from tta.corruptions import CORRUPTIONS, corrupt

CLOSE, CLOSE_ON_AVERAGE = 0.03, 0.007


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "data" / "cifar10-c-200"


@pytest.fixture(scope="module")
def resnet(cifar_resnet18: Backbone) -> Backbone:
    backbone = copy.deepcopy(cifar_resnet18)
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return backbone


@torch.inference_mode()
def accuracy(backbone: Backbone, images: Tensor, labels: Tensor) -> float:
    logits = [backbone(part.contiguous(memory_format=torch.channels_last) / 255) for part in images.split(50)]
    return float((torch.cat(logits).argmax(1) == labels).double().mean())


def read(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path)).permute(0, 3, 1, 2)


def corrupt_at_all_severities(clean: Tensor, name: str, seed: int) -> Tensor:
    index = torch.arange(len(clean))
    return torch.cat([corrupt(clean, name, severity, index=index, seed=seed) for severity in range(1, 6)])


def test_a_real_classifier_is_as_accurate_as_on_the_published_images(resnet: Backbone, folder: Path) -> None:
    clean, labels = read(folder / "clean.npy"), torch.from_numpy(np.load(folder / "labels.npy").astype(np.int64))
    gaps = {}
    for name in CORRUPTIONS:
        theirs = read(folder / f"{name}.npy")
        expected, ours = accuracy(resnet, theirs, labels), corrupt_at_all_severities(clean, name, 0)
        seen = [expected if torch.equal(ours, theirs) else accuracy(resnet, ours, labels)]
        again = corrupt_at_all_severities(clean, name, 1)
        if not torch.equal(again, ours):  # some draw nothing
            seen.append(accuracy(resnet, again, labels))
        gaps[name] = sum(seen) / len(seen) - expected
    assert {name: gap for name, gap in gaps.items() if abs(gap) > CLOSE} == {}
    assert abs(sum(gaps.values()) / len(gaps)) <= CLOSE_ON_AVERAGE

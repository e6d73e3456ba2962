"""T3A against its formulas, with lists in the place of the bank."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.backbones import CLASSES, small_net, some_images
from helpers.errors import raises_naming
from helpers.plain import forward, mixed, moved, running_of, weights_of
from tta.methods import T3A


class PlainT3A:
    """A list of supports for each class: (features, entropy), in the order of arrival."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray, limit: int | None) -> None:
        self.limit = limit
        self.classes: list[list[tuple[np.ndarray, float]]] = [[] for _ in weight]
        for vector in weight:
            self.add(vector, np.array([vector @ w + b for w, b in zip(weight, bias, strict=True)]))

    def add(self, features: np.ndarray, logits: np.ndarray) -> None:
        p = [math.exp(z) / sum(math.exp(other) for other in logits) for z in logits]
        self.classes[p.index(max(p))].append((features, -sum(q * math.log(q) for q in p)))

    def step(self, features: np.ndarray, logits: np.ndarray) -> np.ndarray:
        for f, z in zip(features, logits, strict=True):
            self.add(f, z)
        prototypes = []
        for k, supports in enumerate(self.classes):
            self.classes[k] = sorted(supports, key=lambda support: support[1])[: self.limit]
            total = np.zeros(features.shape[1])
            for f, _ in self.classes[k]:
                total += f / math.sqrt(sum(f * f))
            prototypes.append(total / max(math.sqrt(sum(total * total)), 1e-12))
        return np.array([[f @ prototype for prototype in prototypes] for f in features])


@pytest.mark.parametrize(("limit", "batch_statistics"), [(1, False), (3, True), (100, False), (None, True)])
def test_t3a__follows_plain_formulas(limit: int | None, batch_statistics: bool) -> None:
    net = small_net("batch").double()
    method = T3A(net, limit, batch_statistics=batch_statistics)
    w, statistics = weights_of(net), mixed(running_of(net), share=batch_statistics)
    plain = PlainT3A(w["head.weight"].numpy(), w["head.bias"].numpy(), limit)
    dropped = 0
    for seed, size in enumerate((8, 3, 8, 12, 2, 8)):
        images = some_images(size, seed).double()
        logits, features = forward(w, images, statistics)
        before = sum(map(len, plain.classes))
        expected = plain.step(features.numpy(), logits.numpy())
        np.testing.assert_allclose(method(images).numpy(), expected, rtol=1e-6, atol=1e-9)
        dropped += before + size - sum(map(len, plain.classes))
    assert bool(dropped) == (limit in (1, 3))
    assert not moved(method, w)


class Flat(nn.Module):
    """Features are the mean colours; the classifier is what it is given."""

    def __init__(self, weight: list[list[float]], bias: list[float]) -> None:
        super().__init__()
        self.head = nn.Linear(3, len(weight))
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor(weight))
            self.head.bias.copy_(torch.tensor(bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)))


def colours(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)[:, :, None, None].expand(-1, -1, 2, 2)


ORTHOGONAL = [[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.0]]


def test_t3a__class_without_supports_gets_0() -> None:
    # The weight of class 2 is taken for one of class 0, whose bias is large.
    method = T3A(Flat(ORTHOGONAL, [100.0, 0.0, 0.0]))
    logits = method(colours([0.5, 0.2, 0.9]))
    assert torch.equal(logits[:, 1:], torch.zeros(1, 2))
    assert logits[0, 0] > 0


def test_t3a__bias_has_a_part_in_pseudo_labels_alone() -> None:
    images = colours([0.5, 0.2, 0.3], [0.1, 0.2, 0.9])
    # The same number for every class changes no pseudo-label and no entropy.
    torch.testing.assert_close(T3A(Flat(ORTHOGONAL, [0.0] * 3))(images), T3A(Flat(ORTHOGONAL, [7.0] * 3))(images))
    assert not torch.allclose(T3A(Flat(ORTHOGONAL, [0.0] * 3))(images), T3A(Flat(ORTHOGONAL, [9.0, 0, 0]))(images))


def test_t3a__of_equally_sure_supports_the_first_stay() -> None:
    # Both images of class 0 have the same logits, by a feature that the classifier does not see.
    method = T3A(Flat([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]], [0.0] * 2), supports_per_class=2)
    images = colours([0.9, 0.1, 0.2], [0.9, 0.1, 0.8])
    kept = [torch.tensor([1.0, 0.0, 0.0]), nn.functional.normalize(torch.tensor([0.9, 0.1, 0.2]), dim=0)]
    expected = images.mean((2, 3)) @ nn.functional.normalize(sum(kept[1:], kept[0]), dim=0)
    torch.testing.assert_close(method(images)[:, 0], expected)


def test_t3a__window_takes_every_image_in_once() -> None:
    single, whole = (T3A(small_net("batch"), None, batch_statistics=True, window=window) for window in (4, 0))
    images = some_images(9)
    logits = [single(image) for image in images.split(1)]
    for last in (3, 7):
        torch.testing.assert_close(logits[last], whole(images[last - 3 : last + 1])[-1:])
    assert not torch.allclose(logits[8], whole(images[5:])[-1:])  # which takes them in once more
    assert all(one.shape == (1, CLASSES) for one in logits)


def test_t3a__is_in_full_precision_under_autocast() -> None:
    method = T3A(small_net("batch"))
    with torch.autocast("cpu", torch.bfloat16):
        assert method(some_images()).dtype == torch.float32
    assert not any(value.dtype == torch.bfloat16 for value in method.state_dict().values() if isinstance(value, Tensor))


@pytest.mark.parametrize("limit", [0, 1.5])
def test_t3a__refuses_no_number_of_supports(limit: Any) -> None:
    with raises_naming(ValueError, "method.supports_per_class", limit):
        T3A(small_net("batch"), limit)


def test_t3a__refuses_network_without_classifier() -> None:
    with raises_naming(ValueError, "Sequential"):
        T3A(nn.Sequential(nn.Conv2d(3, CLASSES, 8), nn.Flatten()))

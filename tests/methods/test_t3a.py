"""T3A against its formulas, with lists in the place of the bank."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers.backbones import CLASSES, small_net, some_images
from helpers.plain import forward, mixed, running_of, weights_of
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


@pytest.mark.parametrize("batch", [False, True], ids=["source statistics", "batch statistics"])
@pytest.mark.parametrize("limit", [1, 2, 5, 100, None])
def test_follows_the_plain_formulas_for_several_batches(limit: int | None, batch: bool) -> None:
    net = small_net("batch").double()
    method = T3A(net, limit, batch_statistics=batch)
    w, statistics = weights_of(net), mixed(running_of(net), share=batch)
    plain = PlainT3A(w["head.weight"].numpy(), w["head.bias"].numpy(), limit)
    dropped = 0
    for seed, size in enumerate((8, 3, 8, 12, 2, 8)):
        images = some_images(size, seed).double()
        logits, features = forward(w, images, statistics)
        before = sum(map(len, plain.classes))
        expected = plain.step(features.numpy(), logits.numpy())
        np.testing.assert_allclose(method(images).numpy(), expected, rtol=1e-6, atol=1e-9)
        dropped += before + size - sum(map(len, plain.classes))
        sizes = [int((method.labels == k).sum()) for k in range(CLASSES)]
        assert sizes == [len(supports) for supports in plain.classes]
    assert bool(dropped) == (limit in (1, 2, 5))


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


def test_a_class_without_supports_gets_a_logit_of_0() -> None:
    # The weight of class 2 is taken for one of class 0, whose bias is large.
    method = T3A(Flat(ORTHOGONAL, [100.0, 0.0, 0.0]))
    logits = method(colours([0.5, 0.2, 0.9]))
    assert torch.equal(logits[:, 1:], torch.zeros(1, 2))
    assert logits[0, 0] > 0


def test_the_bias_has_a_part_in_the_pseudo_labels_alone() -> None:
    images = colours([0.5, 0.2, 0.3], [0.1, 0.2, 0.9])
    # The same number for every class changes no pseudo-label and no entropy.
    torch.testing.assert_close(T3A(Flat(ORTHOGONAL, [0.0] * 3))(images), T3A(Flat(ORTHOGONAL, [7.0] * 3))(images))
    assert not torch.allclose(T3A(Flat(ORTHOGONAL, [0.0] * 3))(images), T3A(Flat(ORTHOGONAL, [9.0, 0, 0]))(images))


def test_features_are_not_normalised_in_the_product_and_supports_are() -> None:
    once = T3A(Flat(ORTHOGONAL, [0.0] * 3))(colours([0.2, 0.1, 0.1]))
    prototype = torch.tensor([1.0, 0, 0]) + nn.functional.normalize(torch.tensor([0.2, 0.1, 0.1]), dim=0)
    expected = torch.tensor([0.2, 0.1, 0.1]) @ (prototype / prototype.norm())
    torch.testing.assert_close(once[0, 0], expected)


def test_a_batch_is_among_the_supports_that_it_is_predicted_with() -> None:
    net = Flat(ORTHOGONAL, [0.0] * 3)
    images = colours([0.5, 0.4, 0.1])
    alone = T3A(net)(images)
    beside_another = T3A(net)(torch.cat((images, colours([0.9, 0.7, 0.2]))))
    assert not torch.allclose(alone, beside_another[:1])


def test_one_support_is_the_surest() -> None:
    method = T3A(Flat(ORTHOGONAL, [0.0] * 3), supports_per_class=1)
    # The weights themselves are sure (logits of 9, 0 and 0): no image comes near.
    images = colours([0.5, 0.4, 0.1], [0.2, 0.9, 0.3])
    torch.testing.assert_close(method(images), images.mean((2, 3)))
    sure = colours([1.0, 0.0, 0.0])
    method = T3A(Flat([[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]], [0.0] * 3), supports_per_class=1)
    method(10 * sure + colours([0.0, 1.0, 0.0]))
    torch.testing.assert_close(method.supports[0], nn.functional.normalize(torch.tensor([10.0, 1, 0]), dim=0))


@settings(max_examples=30, deadline=None)
@given(limit=st.integers(1, 6), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 10**6))
def test_no_class_ever_holds_more_than_its_share_and_the_surest_stay(limit: int, sizes: list[int], seed: int) -> None:
    method, everything = T3A(small_net("layer"), limit), T3A(small_net("layer"), None)
    for i, size in enumerate(sizes):
        images = some_images(size, seed + i)
        method(images)
        everything(images)
    assert len(everything.labels) == CLASSES + sum(sizes)
    for k in range(CLASSES):
        kept = method.entropies[method.labels == k]
        surest = everything.entropies[everything.labels == k].sort().values[:limit]
        assert torch.equal(kept, surest)


def test_of_equally_sure_supports_the_first_stay() -> None:
    # Both images of class 0 have the same logits, by a feature that the classifier does not see.
    method = T3A(Flat([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]], [0.0] * 2), supports_per_class=2)
    method(colours([0.9, 0.1, 0.2], [0.9, 0.1, 0.8]))
    torch.testing.assert_close(method.supports[1], nn.functional.normalize(torch.tensor([0.9, 0.1, 0.2]), dim=0))


def test_a_window_takes_every_image_in_once() -> None:
    method = T3A(small_net("batch"), None, batch_statistics=True, window=4)
    for i, image in enumerate(some_images(9).split(1)):
        assert method(image).shape == (1, CLASSES)
        assert len(method.labels) == (0 if i < 3 else CLASSES + (i + 1) // 4 * 4)


def test_autocast_keeps_the_bank_in_full_precision() -> None:
    method = T3A(small_net("batch"))
    with torch.autocast("cpu", torch.bfloat16):
        assert method(some_images()).dtype == torch.float32
    assert method.supports.dtype == method.entropies.dtype == torch.float32


def test_no_weight_changes() -> None:
    net = small_net("batch")
    method = T3A(net)
    method(some_images())
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in method.backbone.state_dict().items())


@pytest.mark.parametrize("limit", [0, -1, 1.5])
def test_a_bad_number_of_supports_says_so(limit: Any) -> None:
    message = f"method.supports_per_class must be a whole number of at least 1, got {limit}"
    with pytest.raises(ValueError, match=message):
        T3A(small_net("batch"), limit)


def test_a_network_without_a_classifier_says_so_at_once() -> None:
    with pytest.raises(ValueError, match="has no linear layer"):
        T3A(nn.Sequential(nn.Conv2d(3, CLASSES, 8), nn.Flatten()))

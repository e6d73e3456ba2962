"""LAME against its formulas in NumPy, sample by sample and class by class."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers.backbones import CLASSES, SmallNet, small_net, some_images
from helpers.errors import raises_naming
from helpers.plain import forward, mixed, running_of, weights_of
from tta.methods import LAME, Source


def plain_affinity(features: np.ndarray, kind: str, neighbours: int) -> np.ndarray:
    n = len(features)
    x = [row / math.sqrt(sum(v * v for v in row)) for row in features]
    distance = [
        [math.sqrt(sum((a - b) ** 2 for a, b in zip(x[i], x[j], strict=True))) for j in range(n)] for i in range(n)
    ]
    w = np.zeros((n, n))
    if kind == "rbf":
        # The sample itself, at distance 0, is the first of its neighbours.
        sigma = sum(sorted(row)[min(neighbours, n) - 1] for row in distance) / n
    for i in range(n):
        others = sorted((j for j in range(n) if j != i), key=lambda j: distance[i][j])
        for j in range(n):
            if kind == "rbf":
                w[i, j] = math.exp(-(distance[i][j] ** 2) / (2 * sigma**2))
            elif kind == "linear":
                w[i, j] = sum(a * b for a, b in zip(x[i], x[j], strict=True))
            else:
                w[i, j] = j in others[:neighbours]
    return w


def plain_lame(logits: np.ndarray, w: np.ndarray, max_steps: int, stops: bool = True) -> tuple[np.ndarray, int]:
    """Assignments, and after how many iterations they were found: when the energy is stable, if it ``stops``."""
    n, c = logits.shape
    p = [[math.exp(z) / sum(math.exp(other) for other in row) for z in row] for row in logits]
    unary = [[-math.log(p[i][k] + 1e-10) for k in range(c)] for i in range(n)]
    z = [[math.exp(-unary[i][k]) / sum(math.exp(-u) for u in unary[i]) for k in range(c)] for i in range(n)]
    old = math.inf
    for step in range(max_steps):
        pull = [[sum(w[i, j] * z[j][k] for j in range(n)) for k in range(c)] for i in range(n)]
        raw = [[math.exp(pull[i][k] - unary[i][k]) for k in range(c)] for i in range(n)]
        z = [[raw[i][k] / sum(raw[i]) for k in range(c)] for i in range(n)]
        energy = sum(
            z[i][k] * (math.log(z[i][k]) + unary[i][k] - pull[i][k]) for i in range(n) for k in range(c) if z[i][k] > 0
        )
        if stops and step > 1 and abs(energy - old) <= 1e-8 * abs(old):
            return np.array(z), step + 1
        old = energy
    return np.array(z), max_steps


def plain_source(net: SmallNet, images: Tensor, batch_statistics: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Logits and features of the source."""
    logits, features = forward(weights_of(net), images, mixed(running_of(net), share=batch_statistics))
    return logits.numpy(), features.numpy()


def assert_assigned(logits: Tensor, expected: np.ndarray) -> None:
    # Iterations after the energy is stable change assignments by 1e-8 of them, rounding in float64 by 1e-14.
    np.testing.assert_allclose(logits.exp().numpy(), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("affinity", "neighbours", "batch_statistics"),
    [("rbf", 5, True), ("rbf", 2, False), ("knn", 1, False), ("linear", 5, True)],
)
def test_lame__follows_plain_formulas(affinity: str, neighbours: int, batch_statistics: bool) -> None:
    net = small_net("batch").double()
    method = LAME(net, affinity, neighbours, batch_statistics=batch_statistics)
    froze = False
    for seed, size in enumerate((8, 3, 12)):  # of three images, fewer than five others are there
        images = some_images(size, seed).double()
        logits, features = plain_source(net, images, batch_statistics)
        w = plain_affinity(features, affinity, neighbours)
        expected, count = plain_lame(logits, w, 100)
        assert_assigned(method(images), expected)
        assert count < 100
        froze |= not np.allclose(plain_lame(logits, w, 100, stops=False)[0], expected, rtol=1e-9, atol=0)
    assert froze  # so that the stop is part of what is compared


@pytest.mark.parametrize("max_steps", [1, 3])
def test_lame__ends_after_given_iterations(max_steps: int) -> None:
    net, images = small_net("batch").double(), some_images().double()
    logits, features = plain_source(net, images)
    expected, count = plain_lame(logits, plain_affinity(features, "rbf", 5), max_steps)
    assert count == max_steps
    assert_assigned(LAME(net, max_steps=max_steps)(images), expected)


def scaled_net(scale: float) -> SmallNet:
    """A network that is as sure as its logits are large."""
    net = small_net("batch").double()
    with torch.no_grad():
        net.head.weight.mul_(scale)
    return net


@pytest.mark.parametrize(("scale", "size", "seed"), [(20, 2, 2), (50, 8, 3)])
def test_lame__stops_after_three_iterations_at_first(scale: float, size: int, seed: int) -> None:
    """Where predictions are so sure that the energy is stable from the beginning."""
    net, images = scaled_net(scale), some_images(size, seed).double()
    logits, features = plain_source(net, images, batch_statistics=True)
    expected, count = plain_lame(logits, plain_affinity(features, "linear", 5), 100)
    assert count == 3
    assert_assigned(LAME(net, "linear", batch_statistics=True)(images), expected)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 5))
def test_lame__no_iteration_raises_energy(seed: int, scale: float) -> None:
    """Divergence from the predictions, less what neighbours agree on, each pair counted once."""
    net, images = scaled_net(scale), some_images(8, seed).double()
    logits, features = plain_source(net, images)
    log_p, w = np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True) + 1e-10), plain_affinity(features, "rbf", 5)

    def energy(log_z: np.ndarray) -> float:
        z = np.exp(log_z)
        return float((z * (log_z - log_p)).sum() - 0.5 * (w * (z @ z.T)).sum())

    energies = [energy(log_p), *(energy(LAME(net, max_steps=n)(images).numpy()) for n in range(1, 6))]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(energies))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 9),
    scale=st.sampled_from([0.0, 1.0, 300.0]),
    affinity=st.sampled_from(["rbf", "knn", "linear"]),
)
def test_lame__assignments_are_finite_distributions(seed: int, n: int, scale: float, affinity: str) -> None:
    logits = LAME(scaled_net(scale), affinity)(some_images(n, seed).double())
    assert logits.isfinite().all()
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(n).double())


@pytest.mark.parametrize("affinity", ["rbf", "knn", "linear"])
def test_lame__bears_one_image_alone_or_repeated(affinity: str) -> None:
    net = small_net("batch")
    for seed in range(3):
        image = some_images(1, seed)
        logits = LAME(net, affinity)(image)
        assert logits.isfinite().all()
        assert torch.equal(logits.argmax(-1), Source(net)(image).argmax(-1))
    assert LAME(net, affinity)(some_images(1).expand(6, -1, -1, -1)).isfinite().all()


def by_colour(gain: float) -> nn.Module:
    """A network whose features are the mean colours, and whose classes are red, green and blue."""
    head = nn.Linear(3, 3)
    with torch.no_grad():
        head.weight.copy_(gain * torch.eye(3))
        head.bias.zero_()
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def of_colours(rows: Tensor) -> Tensor:
    return rows[:, :, None, None].expand(-1, -1, 2, 2)


def test_lame__rounding_noise_is_no_distance() -> None:
    """Features of one image differ by what a kernel rounds; their affinity is 1 all the same."""
    rows = torch.tensor([0.6, 0.5, 0.3]) + 1e-6 * torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    logits = LAME(by_colour(4.0), max_steps=2)(of_colours(rows))
    expected, _ = plain_lame((4.0 * rows.double()).numpy(), np.ones((8, 8)), 2)
    np.testing.assert_allclose(logits.exp().numpy(), expected, atol=1e-3)


def test_lame__close_neighbours_keep_their_distances() -> None:
    """Large batches have torch take distances by way of a matrix product, unless told not to."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.ones(40, 3) + 1e-3 * torch.randn(40, 3, generator=generator)
    net = by_colour(4.0)
    found = LAME(net, max_steps=1)(of_colours(rows))
    expected, _ = plain_lame(4.0 * rows.double().numpy(), plain_affinity(rows.double().numpy(), "rbf", 5), 1)
    np.testing.assert_allclose(found.exp().numpy(), expected, atol=1e-4)


def correct(method: nn.Module, labels: Tensor) -> int:
    """How many of noisy views of each class's colour, in batches of 32, are classified right."""
    noise = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(0))
    images = of_colours(0.3 + 0.3 * torch.eye(3)[labels] + 0.25 * noise)
    batches = zip(images.split(32), labels.split(32), strict=True)
    return sum(int((method(batch).argmax(-1) == truth).sum()) for batch, truth in batches)


def test_lame__gains_on_one_class_after_another_alone() -> None:
    net, sorted_labels, mixed_labels = by_colour(8.0), torch.arange(3).repeat_interleave(32), torch.arange(3).repeat(32)
    assert correct(LAME(net), sorted_labels) > correct(Source(net), sorted_labels) + 10
    assert correct(LAME(net), mixed_labels) < correct(Source(net), mixed_labels)


def test_lame__window_is_corrected_with_images_before() -> None:
    net, images = small_net("batch"), some_images(6)
    method = LAME(net, window=4)
    last = [method(image) for image in images.split(1)][-1]
    torch.testing.assert_close(last, LAME(net)(images[-4:])[-1:])


def test_lame__learns_nothing() -> None:
    method = LAME(small_net("batch"))
    first = method(some_images())
    method(some_images(seed=1))
    assert torch.equal(method(some_images()), first)


@pytest.mark.parametrize("options", [{"neighbours": 0}, {"max_steps": 0}], ids=str)
def test_lame__refuses_values_out_of_range(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with raises_naming(ValueError, f"method.{name}", value):
        LAME(small_net("batch"), **options)


def test_lame__refuses_unknown_affinity() -> None:
    with raises_naming(ValueError, "method.affinity", "cosine", "rbf", "knn", "linear"):
        LAME(small_net("batch"), "cosine")


def test_lame__refuses_network_without_classifier() -> None:
    with raises_naming(ValueError, "Sequential"):
        LAME(nn.Sequential(nn.Conv2d(3, CLASSES, 8), nn.Flatten()))

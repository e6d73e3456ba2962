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

from helpers.backbones import CLASSES, small_net, some_images
from helpers.plain import forward, mixed, running_of, weights_of
from tta.methods import LAME, BNAdapt, Source
from tta.methods.lame import AFFINITIES, assign


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


def plain_lame(logits: np.ndarray, w: np.ndarray, max_steps: int) -> tuple[np.ndarray, int]:
    """Assignments, and after how many iterations they were found."""
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
        if step > 1 and abs(energy - old) <= 1e-8 * abs(old):
            return np.array(z), step + 1
        old = energy
    return np.array(z), max_steps


@pytest.mark.parametrize("batch", [False, True], ids=["source statistics", "batch statistics"])
@pytest.mark.parametrize(("affinity", "neighbours"), [("rbf", 5), ("rbf", 2), ("knn", 5), ("knn", 1), ("linear", 5)])
def test_follows_the_plain_formulas_for_several_batches(affinity: str, neighbours: int, batch: bool) -> None:
    net = small_net("batch").double()
    method = LAME(net, affinity, neighbours, batch_statistics=batch)
    w, statistics = weights_of(net), mixed(running_of(net), share=batch)
    iterations = []
    for seed, size in enumerate((8, 8, 3, 12)):  # of three images, fewer than five others are there
        images = some_images(size, seed).double()
        logits, features = forward(w, images, statistics)
        expected, count = plain_lame(logits.numpy(), plain_affinity(features.numpy(), affinity, neighbours), 100)
        iterations.append(count)
        np.testing.assert_allclose(method(images).exp().numpy(), expected, rtol=1e-6, atol=1e-9)
    assert min(iterations) < 100  # the stop is part of what is compared


@pytest.mark.parametrize("max_steps", [1, 2, 3, 4])
def test_follows_the_plain_formulas_where_the_iterations_end_first(max_steps: int) -> None:
    net, images = small_net("batch").double(), some_images().double()
    method = LAME(net, max_steps=max_steps)
    logits, features = forward(weights_of(net), images, mixed(running_of(net), share=0))
    expected, count = plain_lame(logits.numpy(), plain_affinity(features.numpy(), "rbf", 5), max_steps)
    assert count == max_steps
    np.testing.assert_allclose(method(images).exp().numpy(), expected, rtol=1e-6, atol=1e-9)


def some_problem(n: int = 12, c: int = 4, seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(n, 3, generator=generator, dtype=torch.float64)
    logits = scale * torch.randn(n, c, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1), AFFINITIES["rbf"](nn.functional.normalize(features), 5)


@pytest.mark.parametrize("strength", [1, 1e-4])  # the energy is soon stable, but two iterations are never enough
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_frozen_assignments_are_those_of_a_loop_that_breaks(seed: int, dtype: torch.dtype, strength: float) -> None:
    log_p, w = (tensor.to(dtype) for tensor in some_problem(seed=seed))
    # A constant more in every logarithm changes no assignment, but makes a small change of the energy a smaller one.
    log_p, w = log_p + 5, strength * w
    log_z, old, iterations = log_p.log_softmax(-1), log_p.new_tensor(math.inf), 0
    for step in range(100):
        exponent = log_p + w @ log_z.exp()
        log_z, energy = exponent.log_softmax(-1), -exponent.logsumexp(-1).sum()
        iterations = step + 1
        if step > 1 and abs(energy - old) <= 1e-8 * abs(old):
            break
        old = energy
    assert iterations < 100 if strength == 1 else iterations == 3
    assert torch.equal(assign(log_p, w, 100), log_z)
    if dtype == torch.float64 and strength == 1:  # and there was something to freeze
        assert not torch.equal(log_z, (log_p + w @ log_z.exp()).log_softmax(-1))


def energy(log_p: Tensor, w: Tensor, z: Tensor) -> float:
    """Divergence from the predictions, less what neighbours agree on, each pair counted once."""
    return float((z * (z.log() - log_p)).sum() - 0.5 * (w * (z @ z.T)).sum())


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 5))
def test_no_iteration_raises_the_energy_of_a_positive_affinity(seed: int, scale: float) -> None:
    log_p, w = some_problem(seed=seed, scale=scale)
    energies = [energy(log_p, w, log_p.exp()), *(energy(log_p, w, assign(log_p, w, n).exp()) for n in range(1, 8))]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(energies))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6), scale=st.sampled_from([0.0, 1.0, 300.0]), kind=st.sampled_from(["rbf", "knn", "linear"])
)
def test_assignments_are_finite_distributions(seed: int, scale: float, kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, 9, (), generator=generator))
    features = nn.functional.normalize(torch.randn(n, 3, generator=generator))
    logits = scale * torch.randn(n, 4, generator=generator)
    log_z = assign((logits.softmax(-1) + 1e-10).log(), AFFINITIES[kind](features, 5), 100)
    assert log_z.isfinite().all()
    torch.testing.assert_close(log_z.exp().sum(-1), torch.ones(n))


@pytest.mark.parametrize("affinity", ["rbf", "knn", "linear"])
def test_one_image_alone_keeps_its_class(affinity: str) -> None:
    net = small_net("batch")
    for seed in range(5):
        image = some_images(1, seed)
        logits = LAME(net, affinity)(image)
        assert logits.isfinite().all()
        assert torch.equal(logits.argmax(-1), Source(net)(image).argmax(-1))


@pytest.mark.parametrize("affinity", ["rbf", "knn", "linear"])
def test_the_same_image_several_times(affinity: str) -> None:
    assert LAME(small_net("batch"), affinity)(some_images(1).expand(6, -1, -1, -1)).isfinite().all()


def clusters(labels: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
    """A classifier of noisy views of one colour for each class, and images with these labels."""
    head = nn.Linear(3, 3)
    with torch.no_grad():
        head.weight.copy_(8 * torch.eye(3))
        head.bias.zero_()
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    noise = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(0))
    colours = 0.3 + 0.3 * torch.eye(3)[labels] + 0.25 * noise
    return net, colours[:, :, None, None].expand(-1, -1, 2, 2), labels


def test_gains_on_a_stream_of_one_class_after_another() -> None:
    net, images, labels = clusters(torch.arange(3).repeat_interleave(32))
    source, lame = Source(net), LAME(net)
    correct = {"source": 0, "lame": 0}
    for batch, truth in zip(images.split(32), labels.split(32), strict=True):
        correct["source"] += int((source(batch).argmax(-1) == truth).sum())
        correct["lame"] += int((lame(batch).argmax(-1) == truth).sum())
    assert correct["lame"] > correct["source"] + 10


def test_falls_behind_source_on_mixed_classes() -> None:
    net, images, labels = clusters(torch.arange(3).repeat(32))
    source, lame = Source(net)(images), LAME(net)(images)
    assert (lame.argmax(-1) == labels).sum() < (source.argmax(-1) == labels).sum()


def test_affinities_as_the_official_code_has_them() -> None:
    x = nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.3], [0.0, 1.0]], dtype=torch.float64))
    rbf, knn = AFFINITIES["rbf"](x, 2), AFFINITIES["knn"](x, 2)
    assert torch.equal(rbf.diagonal(), torch.ones(4, dtype=torch.float64))  # kept
    # The second neighbour is the nearest other sample, as the sample itself counts.
    nearest = torch.stack([min((a - b).norm() for j, b in enumerate(x) if j != i) for i, a in enumerate(x)])
    torch.testing.assert_close(rbf[0, 1], torch.exp(-((x[0] - x[1]).norm() ** 2) / (2 * nearest.mean() ** 2)))
    assert torch.equal(knn.diagonal(), torch.zeros(4, dtype=torch.float64))  # no neighbour of its own here
    assert torch.equal(knn.sum(-1), torch.full((4,), 2.0, dtype=torch.float64))
    assert not torch.equal(knn, knn.T)  # and no symmetry


def test_close_neighbours_in_a_large_batch_keep_their_distances_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.ones(40, 8) + 1e-3 * torch.randn(40, 8, generator=generator)
    x = nn.functional.normalize(x)
    torch.testing.assert_close(AFFINITIES["rbf"](x, 5).double(), AFFINITIES["rbf"](x.double(), 5), rtol=0, atol=1e-4)


def test_softmax_of_what_it_returns_is_the_assignment() -> None:
    logits = LAME(small_net("batch"))(some_images())
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(8))
    torch.testing.assert_close(logits.softmax(-1), logits.exp())


def test_with_batch_statistics_it_corrects_bn_adapt() -> None:
    net, images = small_net("batch"), some_images()
    method = LAME(net, max_steps=1, batch_statistics=True)
    logits, features = BNAdapt(net)(images), []
    method.backbone.get_submodule("head").register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    assert method(images).shape == logits.shape
    w = AFFINITIES["rbf"](nn.functional.normalize(features[0]), 5)
    torch.testing.assert_close(method(images), assign((logits.softmax(-1) + 1e-10).log(), w, 1))
    assert method.min_batch_size == 2
    assert LAME(net).min_batch_size == 1


def test_a_window_corrects_single_images_among_those_before_them() -> None:
    net = small_net("batch")
    images = some_images(6)
    method = LAME(net, window=4)
    last = [method(image) for image in images.split(1)][-1]
    torch.testing.assert_close(last, LAME(net)(images[-4:])[-1:])


def test_nothing_is_learnt() -> None:
    method = LAME(small_net("batch"))
    first = method(some_images())
    method(some_images(seed=1))
    assert torch.equal(method(some_images()), first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"affinity": "cosine"}, "method.affinity must be one of rbf, knn, linear; got 'cosine'"),
        ({"neighbours": 0}, "method.neighbours must be a whole number of at least 1, got 0"),
        ({"max_steps": 0}, "method.max_steps must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_values_say_so(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LAME(small_net("batch"), **arguments)


def test_a_network_without_a_classifier_says_so_at_once() -> None:
    with pytest.raises(ValueError, match="has no linear layer"):
        LAME(nn.Sequential(nn.Conv2d(3, CLASSES, 8), nn.Flatten()))


def test_lame__rounding_noise_is_no_distance() -> None:
    """Features of one image differ by what a kernel rounds; their affinity is 1 all the same."""
    features = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)).expand(8, -1)
    noisy = features + 1e-6 * torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    affinity = AFFINITIES["rbf"](nn.functional.normalize(noisy, dim=-1), 5)
    torch.testing.assert_close(affinity, torch.ones(8, 8), rtol=0, atol=1e-2)

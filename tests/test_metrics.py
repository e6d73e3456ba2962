"""Metrics of a domain against their formulas in float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.device_questions import DeviceQuestions
from tta.metrics import DomainMetrics

BINS = 15
CPU = torch.device("cpu")


def logits_and_labels(n: int, c: int, scale: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, generator=generator) * scale, torch.randint(c, (n,), generator=generator)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def calibration_error(p: np.ndarray, labels: np.ndarray) -> float:
    """The formula of arXiv:1706.04599, bin by bin."""
    confidence, correct = p.max(1), p.argmax(1) == labels
    which = np.minimum((confidence * BINS).astype(int), BINS - 1)
    error = 0.0
    for number in range(BINS):
        inside = which == number
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return error


def fed(logits: torch.Tensor, labels: torch.Tensor, batch_size: int = 32) -> DomainMetrics:
    metrics = DomainMetrics(logits.shape[1], CPU)
    for part, truth in zip(logits.split(batch_size), labels.split(batch_size), strict=True):
        metrics.update(part, truth)
    return metrics


@pytest.mark.parametrize(("n", "c", "scale"), [(1, 2, 1.0), (100, 10, 3.0), (333, 10, 0.1), (200, 1000, 5.0)])
def test_metrics__follow_the_formulas(n: int, c: int, scale: float) -> None:
    logits, labels = logits_and_labels(n, c, scale)
    p, truth = softmax(logits.double().numpy()), labels.numpy()
    figures = fed(logits, labels).compute()
    assert figures["n"] == n
    assert figures["accuracy"] == pytest.approx((p.argmax(1) == truth).mean())
    assert figures["calibration_error"] == pytest.approx(calibration_error(p, truth), abs=1e-5)
    assert figures["entropy"] == pytest.approx(-(p * np.log(p)).sum(1).mean(), abs=1e-5)


def test_calibration__puts_one_into_the_last_bin() -> None:
    """Ten wrong images at confidence 1.0 and ten right ones at 0.95 share a bin, where their errors partly cancel."""
    logits = torch.tensor([[100.0, 0.0]] * 10 + [[3.0, 0.0]] * 10)
    labels = torch.tensor([1] * 10 + [0] * 10)
    expected = (1 + 1 / (1 + np.exp(-3))) / 2 - 0.5
    assert fed(logits, labels).compute()["calibration_error"] == pytest.approx(expected, abs=1e-5)


def test_calibration__sure_and_right_has_no_error() -> None:
    labels = torch.arange(10)
    assert fed(torch.eye(10) * 200, labels).compute() == pytest.approx(
        {"n": 10, "accuracy": 1.0, "calibration_error": 0.0, "entropy": 0.0}, abs=1e-6
    )


def test_metrics__do_not_depend_on_the_batch_size() -> None:
    logits, labels = logits_and_labels(100, 5, 2.0)
    whole, cut = fed(logits, labels, 100), fed(logits, labels, 7)
    assert whole.compute() == pytest.approx(cut.compute(), abs=1e-6)
    assert whole.classes() == cut.classes()


def test_classes__are_counted() -> None:
    logits, labels = logits_and_labels(200, 7, 1.0)
    predicted = logits.argmax(1)
    expected = [
        (int((labels == k).sum()), int((predicted == k).sum()), int(((labels == k) & (predicted == k)).sum()))
        for k in range(7)
    ]
    assert fed(logits, labels).classes() == expected


def test_update__counts_its_batch_only() -> None:
    logits, labels = logits_and_labels(50, 6, 2.0)
    metrics = DomainMetrics(6, CPU)
    metrics.update(*logits_and_labels(50, 6, 2.0, seed=1))
    counts = metrics.update(logits, labels)
    p = softmax(logits.double().numpy())
    assert int(counts.correct) == (p.argmax(1) == labels.numpy()).sum()
    assert float(counts.entropy) == pytest.approx(-(p * np.log(p)).sum(1).mean(), abs=1e-5)
    assert bool(counts.finite)


def mixture(domains: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits, labels = logits_and_labels(200, 6, 2.0)
    return logits, labels, torch.randint(domains, (200,), generator=torch.Generator().manual_seed(5))


def test_mixture__counts_images_to_their_domains() -> None:
    logits, labels, domain_index = mixture()
    mixed = DomainMetrics(6, CPU)
    for start in range(0, 200, 32):
        part = slice(start, start + 32)
        counts = mixed.update(logits[part], labels[part], domain_index[part])
        assert int(counts.correct) == int((logits[part].argmax(1) == labels[part]).sum())
    for number in range(3):
        mine = domain_index == number
        alone = fed(logits[mine], labels[mine])
        assert mixed.images(number) == int(mine.sum())
        assert mixed.compute(number) == pytest.approx(alone.compute(), abs=1e-6)
        assert mixed.classes(number) == alone.classes()


def test_update__does_not_synchronise() -> None:
    logits, labels, domain_index = mixture()
    metrics = DomainMetrics(6, CPU)
    with DeviceQuestions() as questions:
        metrics.update(logits, labels, domain_index)
    assert questions.asked == []


def test_entropy__of_half_precision_is_in_float32() -> None:
    logits, labels = logits_and_labels(20, 10, 4.0)
    half = logits.bfloat16()
    counts = [DomainMetrics(10, CPU).update(given, labels) for given in (half, half.float())]
    assert torch.equal(counts[0].entropy, counts[1].entropy)


def test_entropy__is_finite_for_extreme_logits() -> None:
    counts = DomainMetrics(3, CPU).update(torch.tensor([[1e4, 0.0, -1e4]]), torch.tensor([0]))
    assert float(counts.entropy) == 0.0
    assert bool(counts.finite)


def test_update__reports_logits_that_are_not_finite() -> None:
    for value in (float("nan"), float("inf"), -float("inf")):
        logits, labels = logits_and_labels(4, 3, 1.0)
        logits[2, 1] = value
        assert not bool(DomainMetrics(3, CPU).update(logits, labels).finite)

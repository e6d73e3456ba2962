"""The objectives against formulas written here from the paper (arXiv:2511.03256), in float64 NumPy and plain loops."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tta.objectives import EM, AdaDEM, Objective

CASES = [(1, 2), (5, 3), (64, 10), (7, 1000)]


def make_logits(n: int, c: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class PaperAdaDEM:
    """The algorithm of the paper, sample by sample and class by class."""

    def __init__(self, classes: int, momentum: float = 0.1) -> None:
        self.table = np.full((classes, classes), 1 / classes)
        self.momentum = momentum

    def __call__(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the losses and the gradient of their sum."""
        p = softmax(z)
        labels = p.argmax(1)
        for k in set(labels.tolist()):
            mean = p[labels == k].mean(0)
            self.table[k] = (1 - self.momentum) * self.table[k] + self.momentum * mean
        losses, gradients = [], []
        for zi, pi, k in zip(z, p, labels, strict=True):
            m = self.table[k]
            t = -(pi * zi).sum()
            reward = pi * (zi + t + 1)
            delta = np.abs(reward).sum()
            losses.append(-((pi - m) / delta * zi).sum())
            gradients.append((m - reward) / delta)
        return np.array(losses), np.array(gradients)


@pytest.mark.parametrize(("n", "c"), CASES)
def test_em_is_the_entropy_in_value_and_gradient(n: int, c: int) -> None:
    z = make_logits(n, c).requires_grad_()
    loss = EM()(z)
    p = softmax(z.detach().numpy())
    entropy = -(p * np.log(p)).sum(1)
    np.testing.assert_allclose(loss.detach().numpy(), entropy, rtol=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    np.testing.assert_allclose(gradient.numpy(), -p * (np.log(p) + entropy[:, None]), atol=1e-12)


@pytest.mark.parametrize(("n", "c"), CASES)
def test_adadem_is_the_papers_algorithm_over_several_batches(n: int, c: int) -> None:
    ours, paper = AdaDEM(), PaperAdaDEM(c)
    for seed in range(3):
        z = make_logits(n, c, seed).requires_grad_()
        loss = ours(z)
        (gradient,) = torch.autograd.grad(loss.sum(), z)
        expected_loss, expected_gradient = paper(z.detach().numpy())
        np.testing.assert_allclose(loss.detach().numpy(), expected_loss, rtol=1e-9)
        np.testing.assert_allclose(gradient.numpy(), expected_gradient, atol=1e-12)
        np.testing.assert_allclose(ours.table.numpy(), paper.table, rtol=1e-12)


def test_adadem_teaches_where_em_has_stopped() -> None:
    sure = torch.tensor([[30.0, 0.0, 0.0]], dtype=torch.float64)
    gradients = {}
    for objective in (EM(), AdaDEM()):
        z = sure.clone().requires_grad_()
        (gradients[type(objective)],) = torch.autograd.grad(objective(z).sum(), z)
    assert gradients[EM].abs().max() < 1e-10
    assert gradients[AdaDEM].abs().max() > 0.1


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 8), c=st.integers(2, 30), scale=st.floats(0, 200), seed=st.integers(0, 1000))
def test_properties_of_adadem(n: int, c: int, scale: float, seed: int) -> None:
    z = make_logits(n, c, seed, scale).requires_grad_()
    objective = AdaDEM()
    loss = objective(z)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    # Adding a constant to the logits changes nothing, so the gradient of each sample sums to zero.
    torch.testing.assert_close(gradient.sum(1), torch.zeros(n, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(AdaDEM()(z + 7), loss, rtol=1e-6, atol=1e-6)
    # Each row of the table stays a distribution.
    torch.testing.assert_close(objective.table.sum(1), torch.ones(c, dtype=torch.float64))
    assert (objective.table >= 0).all()


@pytest.mark.parametrize("objective", [EM(), AdaDEM()], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize(
    "logits",
    [
        torch.zeros(3, 5),
        torch.eye(5) * 1e4,
        torch.full((2, 3), -1e4),
        torch.tensor([[1e4, -1e4]]),
        make_logits(4, 21841).float(),
    ],
    ids=["uniform", "one-hot", "all low", "far apart", "many classes"],
)
def test_loss_and_gradient_are_finite_for_any_finite_logits(objective: Objective, logits: torch.Tensor) -> None:
    if isinstance(objective, AdaDEM) and logits.shape[-1] > 1000:
        logits = logits[:, :2000]  # the table has C x C entries
    z = logits.clone().requires_grad_()
    loss = copy.deepcopy(objective)(z)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("objective", [EM(), AdaDEM()], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(objective: Objective, dtype: torch.dtype) -> None:
    z = make_logits(6, 10).to(dtype)
    loss = copy.deepcopy(objective)(z)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, copy.deepcopy(objective)(z.float()), rtol=0, atol=0)


def test_leading_dimensions_are_independent_replicas() -> None:
    together, alone = AdaDEM(), [AdaDEM(), AdaDEM()]
    for seed in range(2):
        z = torch.stack([make_logits(6, 4, 10 + seed), make_logits(6, 4, 20 + seed)])
        torch.testing.assert_close(together(z), torch.stack([one(part) for one, part in zip(alone, z, strict=True)]))
    torch.testing.assert_close(together.table, torch.stack([one.table for one in alone]))


def test_reset_forgets_and_a_saved_state_goes_into_a_fresh_object() -> None:
    objective = AdaDEM()
    first, second = make_logits(6, 4, 0), make_logits(6, 4, 1)
    before = objective(first)
    saved = copy.deepcopy(objective.state_dict())
    expected = objective(second)
    fresh = AdaDEM()
    fresh.load_state_dict(saved)
    assert torch.equal(fresh(second), expected)
    objective.reset()
    assert torch.equal(objective(first), before)


def test_the_step_has_no_data_dependent_shape() -> None:
    from torch.func import functional_call

    objective = AdaDEM()
    objective(make_logits(6, 4).float())

    def loss(z: torch.Tensor) -> torch.Tensor:
        return functional_call(objective, {"table": torch.full((4, 4), 0.25)}, (z,))

    # Tracing with fake tensors fails at anything that reads a value: .item(), unique, nonzero, boolean indexing.
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert loss(mode.from_tensor(make_logits(6, 4).float())).shape == (6,)


@pytest.mark.parametrize("momentum", [0, -0.1, 1.5])
def test_adadem_refuses_a_momentum_out_of_range(momentum: float) -> None:
    with pytest.raises(ValueError, match=r"momentum must be in \(0, 1\], got"):
        AdaDEM(momentum)


def test_adadem_refuses_logits_of_another_model() -> None:
    objective = AdaDEM()
    objective(make_logits(6, 4))
    with pytest.raises(ValueError, match="use one objective for each model"):
        objective(make_logits(6, 5))


@pytest.mark.gpu
def test_a_step_on_the_gpu_waits_for_nothing_and_is_deterministic() -> None:
    z = make_logits(64, 10).float().cuda()
    objective, again = AdaDEM().cuda(), AdaDEM().cuda()
    objective(z)
    again(z)
    torch.cuda.set_sync_debug_mode("error")
    try:
        first, second = objective(z), again(z)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, second)
    torch.testing.assert_close(objective.table.cpu(), _cpu_table(z))


def _cpu_table(z: torch.Tensor) -> torch.Tensor:
    objective = AdaDEM()
    objective(z.cpu())
    objective(z.cpu())
    return objective.table

"""The objectives against formulas written here from the papers, in float64 NumPy and plain loops."""

from __future__ import annotations

import copy
import itertools
import math
import shutil
from collections.abc import Callable
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.compositions import composed
from tta.cli import CONFIGS
from tta.objectives import CADF, COME, DEM, EM, SLR, AdaDEM, Objective

CASES = [(1, 2), (5, 3), (64, 10), (7, 1000)]
NAMES = sorted(path.stem for path in (CONFIGS / "objective").glob("*.yaml"))
VARIANTS: dict[str, dict[str, Any]] = {
    "AdaDEM": {},
    "Norm": {"calibrate": False},
    "MEC": {"normalize": False},
    "neither": {"calibrate": False, "normalize": False},
    "V": {"reward": "entropy"},
    "l2": {"norm": "l2"},
    "linf": {"norm": "linf"},
    "momentum 1": {"momentum": 1.0},
    "alpha": {"alpha": 0.4},
    "alpha of MEC": {"alpha": 1.7, "normalize": False},
    "alpha of Norm": {"alpha": 0.3, "calibrate": False},
    "alpha 0": {"alpha": 0.0},
}


def make(name: str) -> Objective:
    """Make the objective of a file in configs/objective: a new one is tested without a change here."""
    return hydra.utils.instantiate(composed(f"objective={name}").objective, _convert_="all")


def make_logits(n: int, c: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def value_and_gradient(objective: Objective, z: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    z = z.clone().requires_grad_()
    loss = objective(z)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    return loss.detach().numpy(), gradient.numpy()


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logsumexp(z: np.ndarray) -> np.ndarray:
    return np.log(np.exp(z).sum(-1))


def slopes(f: Callable[[np.ndarray], np.ndarray], z: np.ndarray) -> np.ndarray:
    """Central differences of a loss per sample (N,) with respect to its logits (N, C)."""
    gradient = np.zeros_like(z)
    for i in range(z.shape[1]):
        step = np.zeros(z.shape[1])
        step[i] = 1e-5
        gradient[:, i] = (f(z + step) - f(z - step)) / 2e-5
    return gradient


def assert_it_compiles(name: str, backend: str) -> None:
    torch._dynamo.reset()
    objective, reference = make(name), make(name)
    compiled = torch.compile(objective, fullgraph=True, backend=backend)
    for seed in range(3):
        z, w = (make_logits(6, 4, seed).float().requires_grad_() for _ in range(2))
        loss, expected = compiled(z), reference(w)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(*(torch.autograd.grad(v.sum(), x) for v, x in ((loss, z), (expected, w))))


class PaperAdaDEM:
    """The algorithm of the paper, sample by sample and class by class."""

    def __init__(
        self,
        classes: int,
        normalize: bool = True,
        calibrate: bool = True,
        momentum: float = 0.1,
        alpha: float = 1.0,
        norm: str = "l1",
        reward: str = "cadf",
    ) -> None:
        self.table = np.full((classes, classes), 1 / classes)
        self.normalize, self.calibrate, self.momentum, self.alpha = normalize, calibrate, momentum, alpha
        self.order = {"l1": 1, "l2": 2, "linf": np.inf}[norm]
        self.reward = reward

    def __call__(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the losses and the gradient of their sum."""
        p = softmax(z)
        labels = p.argmax(1)
        for k in set(labels.tolist()):
            mean = p[labels == k].mean(0)
            self.table[k] = (1 - self.momentum) * self.table[k] + self.momentum * mean
        losses, gradients = [], []
        for zi, pi, k in zip(z, p, labels, strict=True):
            m = self.alpha * (self.table[k] if self.calibrate else pi)
            t = -(pi * zi).sum()
            reward = pi * (zi + t + 1)
            entropy = -(pi * np.log(pi)).sum()
            measured = reward if self.reward == "cadf" else pi * (np.log(pi) + entropy)
            delta = np.linalg.norm(measured, self.order) if self.normalize else 1.0
            losses.append(-((pi - m) / delta * zi).sum())
            gradients.append((m - reward) / delta)
        return np.array(losses), np.array(gradients)


class TestFormulas:
    @pytest.mark.parametrize(("n", "c"), CASES)
    def test_em_is_the_entropy_in_value_and_gradient(self, n: int, c: int) -> None:
        z = make_logits(n, c)
        loss, gradient = value_and_gradient(EM(), z)
        p = softmax(z.numpy())
        entropy = -(p * np.log(p)).sum(1)
        np.testing.assert_allclose(loss, entropy, rtol=1e-12)
        np.testing.assert_allclose(gradient, -p * (np.log(p) + entropy[:, None]), atol=1e-12)

    @pytest.mark.parametrize(("n", "c"), CASES)
    def test_em_is_cadf_and_gmc(self, n: int, c: int) -> None:
        z = make_logits(n, c)
        (loss, gradient), (t, t_gradient) = value_and_gradient(EM(), z), value_and_gradient(CADF(), z)
        p = softmax(z.numpy())
        np.testing.assert_allclose(
            t, [-sum(a * b for a, b in zip(*row, strict=True)) for row in zip(p, z.numpy(), strict=True)]
        )
        np.testing.assert_allclose(loss, t + logsumexp(z.numpy()), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(gradient, t_gradient + p, atol=1e-12)

    @pytest.mark.parametrize(("tau", "alpha"), [(1.0, 1.0), (1.1, 0.0), (1.4, 1.4), (0.3, 2.0), (2.0, 0.7)])
    @pytest.mark.parametrize(("n", "c"), CASES)
    def test_dem_is_equation_11_in_value_and_gradient(self, n: int, c: int, tau: float, alpha: float) -> None:
        z = make_logits(n, c)
        loss, gradient = value_and_gradient(DEM(tau, alpha), z)
        x = z.numpy()
        q, p = softmax(x / tau), softmax(x)
        mean = (q * x).sum(1, keepdims=True)
        np.testing.assert_allclose(loss, -mean[:, 0] + alpha * logsumexp(x), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(gradient, -q - q * (x - mean) / tau + alpha * p, atol=1e-12)

    def test_dem_holds_em_and_cadf(self) -> None:
        z = make_logits(64, 10)
        for dem, other in ((DEM(1, 1), EM()), (DEM(1, 0), CADF())):
            for a, b in zip(value_and_gradient(dem, z), value_and_gradient(other, z), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
    @pytest.mark.parametrize(("n", "c"), CASES)
    def test_adadem_is_the_papers_algorithm_over_several_batches(self, n: int, c: int, options: dict[str, Any]) -> None:
        ours, paper = AdaDEM(**options), PaperAdaDEM(c, **options)
        for seed in range(3):
            z = make_logits(n, c, seed)
            loss, gradient = value_and_gradient(ours, z)
            expected_loss, expected_gradient = paper(z.numpy())
            np.testing.assert_allclose(loss, expected_loss, rtol=1e-8, atol=1e-12)
            np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-9, atol=1e-11)
            if ours.calibrate:
                np.testing.assert_allclose(ours.table.numpy(), paper.table, rtol=1e-12)

    def test_adadem_without_both_parts_has_the_gradient_of_em(self) -> None:
        z = make_logits(64, 10)
        _, expected = value_and_gradient(EM(), z)
        _, gradient = value_and_gradient(AdaDEM(normalize=False, calibrate=False), z)
        np.testing.assert_allclose(gradient, expected, atol=1e-12)

    @pytest.mark.parametrize(("n", "c"), CASES)
    def test_come_is_the_entropy_of_an_opinion_whose_evidence_cannot_grow(self, n: int, c: int) -> None:
        z = make_logits(n, c)
        loss, gradient = value_and_gradient(COME(), z)

        def opinion(x: np.ndarray) -> np.ndarray:
            strength = np.exp(x).sum(1) + c
            belief, uncertainty = np.exp(x) / strength[:, None], c / strength
            return -(belief * np.log(belief)).sum(1) - uncertainty * np.log(uncertainty)

        norm = np.linalg.norm(z.numpy(), axis=1, keepdims=True)
        np.testing.assert_allclose(loss, opinion(z.numpy()), rtol=1e-9)
        if c < 100:
            turned = slopes(lambda x: opinion(x / np.linalg.norm(x, axis=1, keepdims=True) * norm), z.numpy())
            np.testing.assert_allclose(gradient, turned, atol=1e-8)
        np.testing.assert_allclose((gradient * z.numpy()).sum(1), 0, atol=1e-9)

    @pytest.mark.parametrize(("n", "c"), CASES)
    def test_slr_is_the_mean_log_ratio(self, n: int, c: int) -> None:
        z = make_logits(n, c)
        loss, gradient = value_and_gradient(SLR(), z)

        def ratio(x: np.ndarray) -> np.ndarray:
            losses = np.zeros(len(x))
            for row, p in enumerate(softmax(x)):
                for pi in p:
                    cut = min(pi, 0.99)
                    losses[row] -= cut * math.log(cut / (1 - cut) + 1e-5)
            return losses

        np.testing.assert_allclose(loss, ratio(z.numpy()), rtol=1e-9, atol=1e-12)
        if c < 100:
            np.testing.assert_allclose(gradient, slopes(ratio, z.numpy()), atol=1e-6)

    @pytest.mark.parametrize("objective", [EM(), CADF(), DEM(0.7, 1.3), SLR()], ids=lambda o: type(o).__name__)
    def test_gradients_without_a_stop_are_those_of_differences(self, objective: Objective) -> None:
        assert torch.autograd.gradcheck(objective, make_logits(4, 6, scale=1.0).requires_grad_())


class TestProperties:
    @settings(max_examples=50, deadline=None)
    @given(n=st.integers(1, 8), c=st.integers(2, 30), scale=st.floats(0, 200), seed=st.integers(0, 1000))
    def test_reward_sums_to_one_and_so_delta_is_at_least_one(self, n: int, c: int, scale: float, seed: int) -> None:
        z = make_logits(n, c, seed, scale)
        _, gradient = value_and_gradient(CADF(), z)
        np.testing.assert_allclose(-gradient.sum(1), 1, atol=1e-9)
        p = z.softmax(-1)
        surprise = p * z.log_softmax(-1)
        for norm, least in (("l1", 1), ("l2", c**-0.5), ("linf", 1 / c)):
            assert (AdaDEM(norm=norm)._delta(p, surprise, -surprise.sum(-1)) >= least - 1e-9).all()

    @settings(max_examples=50, deadline=None)
    @given(n=st.integers(1, 8), c=st.integers(2, 30), scale=st.floats(0, 200), seed=st.integers(0, 1000))
    def test_adadem_does_not_see_a_constant_and_keeps_distributions(
        self, n: int, c: int, scale: float, seed: int
    ) -> None:
        z = make_logits(n, c, seed, scale)
        objective = AdaDEM()
        loss, gradient = value_and_gradient(objective, z)
        np.testing.assert_allclose(gradient.sum(1), 0, atol=1e-9)
        np.testing.assert_allclose(AdaDEM()(z + 7).numpy(), loss, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(objective.table.sum(1), torch.ones(c, dtype=torch.float64))
        assert (objective.table >= 0).all()

    @settings(max_examples=50, deadline=None)
    @given(c=st.integers(2, 30), scale=st.floats(0, 50), seed=st.integers(0, 1000))
    def test_values_are_in_their_range(self, c: int, scale: float, seed: int) -> None:
        z = make_logits(5, c, seed, scale)
        assert ((EM()(z) >= 0) & (EM()(z) <= math.log(c) + 1e-9)).all()
        assert ((COME()(z) >= 0) & (COME()(z) <= math.log(c + 1) + 1e-9)).all()

    def test_adadem_teaches_where_em_has_stopped(self) -> None:
        sure = torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64)
        assert np.abs(value_and_gradient(EM(), sure)[1]).max() < 1e-20
        for objective in (AdaDEM(), AdaDEM(normalize=False), CADF()):
            assert np.abs(value_and_gradient(objective, sure)[1]).max() > 0.1

    def test_mec_rewards_a_class_less_the_longer_all_samples_fall_into_it(self) -> None:
        """Against easy-class bias: after many batches of one class, its row is that class."""
        z = torch.tensor([[5.0, 0.0, 0.0]] * 8, dtype=torch.float64)
        objective = AdaDEM()
        pulls = [-value_and_gradient(objective, z)[1][0, 0] for _ in range(50)]
        assert all(later < earlier for earlier, later in itertools.pairwise(pulls))


EXTREMES = {
    "uniform": torch.zeros(3, 5),
    "one-hot": torch.eye(5) * 1e4,
    "all low": torch.full((2, 3), -1e4),
    "far apart": torch.tensor([[1e4, -1e4]]),
    "one sample": make_logits(1, 10).float(),
    "many classes": make_logits(2, 21841).float(),
}


@pytest.mark.parametrize("name", NAMES)
class TestEvery:
    """What every objective promises."""

    @pytest.mark.parametrize("logits", EXTREMES.values(), ids=EXTREMES.keys())
    def test_loss_and_gradient_are_finite_for_any_finite_logits(self, name: str, logits: torch.Tensor) -> None:
        loss, gradient = value_and_gradient(make(name), logits)
        assert loss.shape == logits.shape[:-1]
        assert np.isfinite(loss).all()
        assert np.isfinite(gradient).all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("autocast", [False, True])
    def test_half_precision_logits_are_computed_in_float32(self, name: str, dtype: torch.dtype, autocast: bool) -> None:
        z = make_logits(6, 10).to(dtype)
        objective, reference = make(name), make(name)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = objective(z)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, reference(z.float()))
        assert all(torch.equal(a, b) for a, b in zip(objective.buffers(), reference.buffers(), strict=True))

    def test_leading_dimensions_are_independent_replicas(self, name: str) -> None:
        together, alone = make(name), [make(name) for _ in range(6)]
        for seed in range(3):
            parts = [make_logits(7, 4, 10 * replica + seed) for replica in range(6)]
            expected = torch.stack([one(part) for one, part in zip(alone, parts, strict=True)])
            torch.testing.assert_close(together(torch.stack(parts).view(2, 3, 7, 4)), expected.view(2, 3, 7))

    def test_reset_forgets_and_a_saved_state_goes_into_a_fresh_object(self, name: str) -> None:
        objective = make(name)
        first, second = make_logits(6, 4, 0), make_logits(6, 4, 1)
        before = objective(first)
        saved = copy.deepcopy(objective.state_dict())
        expected = objective(second)
        fresh = make(name)
        fresh.load_state_dict(saved)
        assert torch.equal(fresh(second), expected)
        objective.reset()
        assert torch.equal(objective(first), before)

    def test_does_not_change_its_logits(self, name: str) -> None:
        z = make_logits(6, 4)
        before = z.clone()
        make(name)(z)
        assert torch.equal(z, before)

    def test_the_step_has_no_data_dependent_shape(self, name: str) -> None:
        # Tracing with fake tensors fails at anything that reads a value: .item(), unique, nonzero, boolean indexing.
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode() as mode:
            assert make(name)(mode.from_tensor(make_logits(6, 4).float())).shape == (6,)

    def test_compiles_as_one_graph(self, name: str) -> None:
        assert_it_compiles(name, "aot_eager")

    @pytest.mark.gpu
    def test_a_step_on_the_gpu_waits_for_nothing_and_a_captured_graph_gives_the_same(self, name: str) -> None:
        batches = [make_logits(64, 10, seed).float().cuda() for seed in range(4)]
        eager, captured = make(name).cuda(), make(name).cuda()

        def step(objective: Objective, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            z = z.detach().requires_grad_()
            loss = objective(z)
            return loss.detach(), torch.autograd.grad(loss.sum(), z)[0]

        for objective in (eager, captured):
            step(objective, batches[0])  # makes the table
            objective.reset()
        static, side, graph = batches[0].clone(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step(captured, static)
        torch.cuda.current_stream().wait_stream(side)
        captured.reset()
        with torch.cuda.graph(graph):
            replayed = step(captured, static)
        captured.reset()
        for batch in batches:
            static.copy_(batch)
            graph.replay()
            torch.cuda.set_sync_debug_mode("error")
            try:
                expected = step(eager, batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            for ours, theirs in zip(replayed, expected, strict=True):
                torch.testing.assert_close(ours, theirs)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("name", ["em", "adadem"])  # ten seconds each, and more for the first
def test_compiles_to_code(name: str) -> None:
    assert_it_compiles(name, "inductor")


class TestTable:
    """AdaDEM's table of marginal predictions."""

    def test_of_the_given_size_is_there_from_the_beginning(self) -> None:
        objective, lazy = AdaDEM(num_classes=4), AdaDEM()
        assert torch.equal(objective.table, torch.full((4, 4), 0.25))
        z = make_logits(6, 4).float()
        assert torch.equal(objective(z), lazy(z))
        assert torch.equal(objective.table, lazy.table)

    def test_follows_the_module_to_another_dtype(self) -> None:
        objective = AdaDEM(num_classes=4).to(torch.bfloat16)
        assert objective.table.dtype == torch.bfloat16
        assert objective(make_logits(6, 4).bfloat16()).dtype == torch.float32

    def test_rows_of_absent_classes_stay(self) -> None:
        objective = AdaDEM(num_classes=3)
        objective(torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0], [9.0, 1.0, 0.0]]))
        changed = (objective.table != torch.full((3, 3), 1 / 3)).any(1)
        assert changed.tolist() == [True, False, True]

    def test_many_samples_of_one_class_give_one_row_to_the_last_bit(self) -> None:
        objective = AdaDEM()
        z = make_logits(257, 3, scale=0.5).float()
        with torch.no_grad():
            p = z.softmax(-1)
            rows = objective._calibrator(p)
        for k in range(3):
            assert (rows[p.argmax(1) == k] == objective.table[k]).all()


class TestWrongValues:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"momentum": 0}, r"momentum must be in \(0, 1\], got 0"),
            ({"momentum": 1.5}, r"momentum must be in \(0, 1\], got 1.5"),
            ({"alpha": -0.1}, "alpha must be at least 0, got -0.1"),
            ({"norm": "l3"}, "norm must be one of l1, l2, linf; got 'l3'"),
            ({"reward": "loss"}, "reward must be one of cadf, entropy; got 'loss'"),
            ({"num_classes": 1}, "num_classes must be a whole number of at least 2, got 1"),
        ],
    )
    def test_of_adadem(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            AdaDEM(**options)

    def test_logits_of_another_model(self) -> None:
        objective = AdaDEM()
        objective(make_logits(6, 4))
        with pytest.raises(ValueError, match="use one objective for each model"):
            objective(make_logits(6, 5))

    def test_dem_beyond_its_proposition(self) -> None:
        message = r"tau <= 2 / alpha \(proposition A.1 of arXiv:2511.03256\), got tau=1.5 > 1: .* check=False"
        with pytest.raises(ValueError, match=message):
            DEM(1.5, 2)
        assert DEM(1.5, 2, check=False)(make_logits(3, 4)).isfinite().all()
        DEM(1, 2)  # the bound itself is allowed

    @pytest.mark.parametrize(("tau", "alpha"), [(0, 1), (-1, 0), (1, -0.5), (math.inf, 0), (math.nan, 1)])
    def test_of_dem(self, tau: float, alpha: float) -> None:
        with pytest.raises(ValueError, match=f"DEM needs tau > 0 and alpha >= 0, got tau={tau} and alpha={alpha}"):
            DEM(tau, alpha, check=False)

    @pytest.mark.parametrize(("clip", "eps"), [(1.0, 1e-5), (0.0, 1e-5), (0.99, 0.0)])
    def test_of_slr(self, clip: float, eps: float) -> None:
        with pytest.raises(ValueError, match=rf"SLR needs clip in \(0, 1\) and eps > 0, got clip={clip} and eps={eps}"):
            SLR(clip, eps)

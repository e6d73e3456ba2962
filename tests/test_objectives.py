"""The objectives against the papers' formulas in float64 NumPy, and what every objective guarantees."""

from __future__ import annotations

import copy
import itertools
import math
import shutil
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import paper_objectives as paper
from helpers.compositions import composed
from helpers.device_questions import crossings, without_autocast
from helpers.errors import raises_naming
from helpers.paper_objectives import Array, PaperAdaDEM
from tta.cli import CONFIGS
from tta.objectives import CADF, COME, DEM, EM, SLR, AdaDEM, Objective

SIZES = [(1, 2), (5, 3), (64, 10), (7, 1000)]
NAMES = sorted(path.stem for path in (CONFIGS / "objective").glob("*.yaml"))
VARIANTS: dict[str, dict[str, Any]] = {
    "adadem": {},
    "norm": {"calibrate": False},
    "mec": {"normalize": False},
    "neither": {"calibrate": False, "normalize": False},
    "v": {"reward": "entropy"},
    "l2": {"norm": "l2"},
    "linf": {"norm": "linf"},
    "momentum 1": {"momentum": 1.0},
    "alpha": {"alpha": 0.4},
    "mec alpha": {"alpha": 1.7, "normalize": False},
    "norm alpha": {"alpha": 0.3, "calibrate": False},
    "alpha 0": {"alpha": 0.0},
}
EXTREMES = {
    "uniform": torch.zeros(3, 5),
    "one-hot": torch.eye(5) * 1e4,
    "all low": torch.full((2, 3), -1e4),
    "far apart": torch.tensor([[1e4, -1e4]]),
}


def make(name: str) -> Objective:
    """Instantiate the objective of a file in configs/objective, so that new ones are tested unasked."""
    return hydra.utils.instantiate(composed(f"objective={name}").objective, _convert_="all")


def make_logits(n: int, c: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def value_and_gradient(objective: Objective, z: torch.Tensor) -> tuple[Array, Array]:
    z = z.clone().requires_grad_()
    loss = objective(z)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    return loss.detach().numpy(), gradient.numpy()


# Formulas


def test_em__is_the_entropy() -> None:
    for n, c in SIZES:
        z = make_logits(n, c)
        loss, gradient = value_and_gradient(EM(), z)
        expected, slope = paper.entropy(z.numpy())
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        np.testing.assert_allclose(gradient, slope, atol=1e-12)


def test_em__is_cadf_plus_gmc() -> None:
    for n, c in SIZES:
        z = make_logits(n, c)
        (loss, gradient), (t, t_gradient) = value_and_gradient(EM(), z), value_and_gradient(CADF(), z)
        p = paper.softmax(z.numpy())
        np.testing.assert_allclose(
            t, [-sum(a * b for a, b in zip(*row, strict=True)) for row in zip(p, z.numpy(), strict=True)]
        )
        np.testing.assert_allclose(loss, t + paper.logsumexp(z.numpy()), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(gradient, t_gradient + p, atol=1e-12)


@pytest.mark.parametrize(("tau", "alpha"), [(1.1, 0.0), (1.4, 1.4), (0.3, 2.0), (2.0, 1.0)])
def test_dem__is_equation_11(tau: float, alpha: float) -> None:
    for n, c in SIZES:
        z = make_logits(n, c)
        loss, gradient = value_and_gradient(DEM(tau, alpha), z)
        expected, slope = paper.dem(z.numpy(), tau, alpha)
        np.testing.assert_allclose(loss, expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(gradient, slope, atol=1e-12)


def test_dem__contains_em_and_cadf() -> None:
    z = make_logits(64, 10)
    for dem, other in ((DEM(1, 1), EM()), (DEM(1, 0), CADF())):
        for a, b in zip(value_and_gradient(dem, z), value_and_gradient(other, z), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_adadem__follows_the_paper(options: dict[str, Any]) -> None:
    """Losses, gradients and the table agree with the paper's algorithm over three batches."""
    for n, c in SIZES:
        ours, theirs = AdaDEM(**options), PaperAdaDEM(c, **options)
        for seed in range(3):
            z = make_logits(n, c, seed)
            loss, gradient = value_and_gradient(ours, z)
            expected, slope = theirs(z.numpy())
            np.testing.assert_allclose(loss, expected, rtol=1e-8, atol=1e-12)
            np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-11)
            if ours.calibrate:
                np.testing.assert_allclose(ours.table.numpy(), theirs.table, rtol=1e-12)


def test_adadem__without_both_parts_learns_as_em() -> None:
    z = make_logits(64, 10)
    _, expected = value_and_gradient(EM(), z)
    _, gradient = value_and_gradient(AdaDEM(normalize=False, calibrate=False), z)
    np.testing.assert_allclose(gradient, expected, atol=1e-12)


def test_come__is_the_entropy_of_an_opinion() -> None:
    """The gradient is that at a fixed norm of the logits, hence orthogonal to them."""
    for n, c in SIZES:
        z = make_logits(n, c)
        loss, gradient = value_and_gradient(COME(), z)
        norm = np.linalg.norm(z.numpy(), axis=1, keepdims=True)
        np.testing.assert_allclose(loss, paper.opinion_entropy(z.numpy()), rtol=1e-9)
        np.testing.assert_allclose((gradient * z.numpy()).sum(1), 0, atol=1e-9)
        if c < 100:

            def turned(x: Array, norm: Array = norm) -> Array:
                return paper.opinion_entropy(x / np.linalg.norm(x, axis=1, keepdims=True) * norm)

            np.testing.assert_allclose(gradient, paper.slopes(turned, z.numpy()), atol=1e-8)


def test_slr__is_the_mean_log_ratio() -> None:
    for n, c in SIZES:
        z = make_logits(n, c)
        loss, gradient = value_and_gradient(SLR(), z)
        np.testing.assert_allclose(loss, paper.mean_log_ratio(z.numpy()), rtol=1e-9, atol=1e-12)
        if c < 100:
            np.testing.assert_allclose(gradient, paper.slopes(paper.mean_log_ratio, z.numpy()), atol=1e-6)


@pytest.mark.parametrize("objective", [EM(), CADF(), DEM(0.7, 1.3), SLR()], ids=lambda o: type(o).__name__)
def test_objective__passes_gradcheck(objective: Objective) -> None:
    assert torch.autograd.gradcheck(objective, make_logits(4, 6, scale=1.0).requires_grad_())


# Properties

ANY_LOGITS = {
    "n": st.integers(1, 8),
    "c": st.integers(2, 30),
    "scale": st.floats(0, 200),
    "seed": st.integers(0, 1000),
}


@settings(max_examples=25, deadline=None)
@given(**ANY_LOGITS)
def test_adadem__delta_is_bounded_below(n: int, c: int, scale: float, seed: int) -> None:
    """The reward sums to 1, so dividing by its norm enlarges no gradient by more than that bound."""
    z = make_logits(n, c, seed, scale)
    _, reward = value_and_gradient(CADF(), z)
    np.testing.assert_allclose(-reward.sum(1), 1, atol=1e-9)
    _, whole = value_and_gradient(AdaDEM(normalize=False), z)
    for norm, least in (("l1", 1), ("l2", c**-0.5), ("linf", 1 / c)):
        _, normalised = value_and_gradient(AdaDEM(norm=norm), z)
        assert (least * np.abs(normalised) <= np.abs(whole) + 1e-9).all()


@settings(max_examples=25, deadline=None)
@given(**ANY_LOGITS)
def test_adadem__ignores_a_constant(n: int, c: int, scale: float, seed: int) -> None:
    """Adding a constant to the logits changes no loss; gradients sum to 0, and rows of the table to 1."""
    z = make_logits(n, c, seed, scale)
    objective = AdaDEM()
    loss, gradient = value_and_gradient(objective, z)
    np.testing.assert_allclose(gradient.sum(1), 0, atol=1e-9)
    np.testing.assert_allclose(AdaDEM()(z + 7).numpy(), loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(objective.table.sum(1), torch.ones(c, dtype=torch.float64))
    assert (objective.table >= 0).all()


@settings(max_examples=25, deadline=None)
@given(c=st.integers(2, 30), scale=st.floats(0, 50), seed=st.integers(0, 1000))
def test_entropies__stay_in_their_range(c: int, scale: float, seed: int) -> None:
    z = make_logits(5, c, seed, scale)
    assert ((EM()(z) >= 0) & (EM()(z) <= math.log(c) + 1e-9)).all()
    assert ((COME()(z) >= 0) & (COME()(z) <= math.log(c + 1) + 1e-9)).all()


def test_adadem__learns_from_confident_samples() -> None:
    sure = torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64)
    assert np.abs(value_and_gradient(EM(), sure)[1]).max() < 1e-20
    for objective in (AdaDEM(), AdaDEM(normalize=False), CADF()):
        assert np.abs(value_and_gradient(objective, sure)[1]).max() > 0.1


def test_mec__works_against_easy_classes() -> None:
    """The longer all samples fall into one class, the smaller the pull towards it."""
    z = torch.tensor([[5.0, 0.0, 0.0]] * 8, dtype=torch.float64)
    objective = AdaDEM()
    pulls = [-value_and_gradient(objective, z)[1][0, 0] for _ in range(50)]
    assert all(later < earlier for earlier, later in itertools.pairwise(pulls))


# Every objective


@pytest.mark.parametrize("name", NAMES)
def test_objective__is_finite_for_finite_logits(name: str) -> None:
    for logits in (*EXTREMES.values(), make_logits(1, 10).float(), make_logits(1, 21841).float()):
        loss, gradient = value_and_gradient(make(name), logits)
        assert loss.shape == logits.shape[:-1]
        assert np.isfinite(loss).all()
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", NAMES)
def test_objective__computes_half_in_float32(name: str) -> None:
    for dtype, autocast in ((torch.bfloat16, False), (torch.float16, True)):
        z = make_logits(6, 10).to(dtype)
        objective, reference = make(name), make(name)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = objective(z)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, reference(z.float()))
        assert all(torch.equal(a, b) for a, b in zip(objective.buffers(), reference.buffers(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_objective__counts_leading_dimensions_as_samples(name: str) -> None:
    """Of any shape (..., N, C), all samples count as one batch."""
    logits = make_logits(24, 4)
    shaped, flat = make(name), make(name)
    for _ in range(2):
        torch.testing.assert_close(shaped(logits.view(2, 3, 4, 4)).flatten(), flat(logits))


@pytest.mark.parametrize("name", NAMES)
def test_objective__resets_and_resumes(name: str) -> None:
    objective = make(name)
    first, second = make_logits(6, 4, 0), make_logits(6, 4, 1)
    given = first.clone()
    before = objective(first)
    assert torch.equal(first, given)  # the caller's logits stay as they are
    saved = copy.deepcopy(objective.state_dict())
    expected = objective(second)
    fresh = make(name)
    fresh.load_state_dict(saved)
    assert torch.equal(fresh(second), expected)
    objective.reset()
    assert torch.equal(objective(first), before)


@pytest.mark.parametrize("name", NAMES)
def test_objective__reads_no_value_on_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device .item(), unique, nonzero and boolean indexing raise."""
    without_autocast(monkeypatch)
    assert crossings(make(name), torch.empty(6, 4, device="meta")) == []


def assert_it_compiles(name: str, backend: str) -> None:
    torch.compiler.reset()
    objective, reference = make(name), make(name)
    compiled = torch.compile(objective, fullgraph=True, backend=backend)
    for seed in range(3):
        z, w = (make_logits(6, 4, seed).float().requires_grad_() for _ in range(2))
        loss, expected = compiled(z), reference(w)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(*(torch.autograd.grad(v.sum(), x) for v, x in ((loss, z), (expected, w))))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "adadem" else pytest.mark.slow) for name in NAMES]
)
def test_objective__compiles_as_one_graph(name: str) -> None:
    assert_it_compiles(name, "aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
def test_adadem__compiles_to_code() -> None:
    assert_it_compiles("adadem", "inductor")


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_objective__replays_in_a_cuda_graph(name: str) -> None:
    """A captured step gives what an eager one does, which does not synchronise with the GPU."""
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


# AdaDEM's table


def test_table__can_be_allocated_beforehand() -> None:
    objective, lazy = AdaDEM(num_classes=4), AdaDEM()
    assert torch.equal(objective.table, torch.full((4, 4), 0.25))
    z = make_logits(6, 4).float()
    assert torch.equal(objective(z), lazy(z))
    assert torch.equal(objective.table, lazy.table)


def test_table__follows_the_module_to_a_dtype() -> None:
    objective = AdaDEM(num_classes=4).to(torch.bfloat16)
    assert objective.table.dtype == torch.bfloat16
    assert objective(make_logits(6, 4).bfloat16()).dtype == torch.float32


def test_table__keeps_rows_of_absent_classes() -> None:
    objective = AdaDEM(num_classes=3)
    objective(torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0], [9.0, 1.0, 0.0]]))
    changed = (objective.table != torch.full((3, 3), 1 / 3)).any(1)
    assert changed.tolist() == [True, False, True]


def test_table__rejects_logits_of_another_model() -> None:
    objective = AdaDEM()
    objective(make_logits(6, 4))
    with raises_naming(ValueError, "(4, 4)", "(6, 5)", "(5, 5)"):
        objective(make_logits(6, 5))


# Wrong values


@pytest.mark.parametrize(
    ("key", "value", "options"),
    [
        ("momentum", 0, ()),
        ("momentum", 1.5, ()),
        ("alpha", -0.1, ()),
        ("norm", "l3", ("l1", "l2", "linf")),
        ("reward", "loss", ("cadf", "entropy")),
        ("num_classes", 1, ()),
    ],
)
def test_adadem__rejects_wrong_values(key: str, value: Any, options: tuple[str, ...]) -> None:
    with raises_naming(ValueError, key, value, *options):
        AdaDEM(**{key: value})


def test_dem__rejects_tau_beyond_its_bound() -> None:
    """Proposition A.1 of arXiv:2511.03256: tau <= 2 / alpha, unless asked not to check."""
    with raises_naming(ValueError, "tau=1.5", "check=False"):
        DEM(1.5, 2)
    assert DEM(1.5, 2, check=False)(make_logits(3, 4)).isfinite().all()
    DEM(1, 2)  # the bound itself is allowed


@pytest.mark.parametrize(("tau", "alpha"), [(0, 1), (1, -0.5), (math.inf, 0), (math.nan, 1)])
def test_dem__rejects_wrong_values(tau: float, alpha: float) -> None:
    with raises_naming(ValueError, f"tau={tau}", f"alpha={alpha}"):
        DEM(tau, alpha, check=False)


@pytest.mark.parametrize(("clip", "eps"), [(1.0, 1e-5), (0.0, 1e-5), (0.99, 0.0)])
def test_slr__rejects_wrong_values(clip: float, eps: float) -> None:
    with raises_naming(ValueError, f"clip={clip}", f"eps={eps}"):
        SLR(clip, eps)

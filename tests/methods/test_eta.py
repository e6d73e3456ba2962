"""ETA against its formulas, and what is easily done wrong in it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.backbones import small_net, varied_images
from helpers.compositions import composed
from helpers.errors import raises_naming
from helpers.given_logits import CLASSES, UNSURE, A, B, GivenLogits, images_with
from helpers.plain import PlainAdaDEM, adapted_of, assert_adapted, soft
from helpers.plain_eta import PlainETA
from tta.methods import ETA
from tta.objectives import CADF, EM, AdaDEM

sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
still = functools.partial(torch.optim.SGD, lr=0.0)


def on_given_logits(optimizer: Any = sgd, **options: Any) -> ETA:
    return ETA(GivenLogits(), EM(), optimizer, **{"diversity": 0.5, **options})


def used(method: ETA, *probabilities: list[float]) -> int:
    """Adapt on images with these predictions, and tell how many were used."""
    method(images_with(*probabilities))
    return int(method.diagnostics["used"])


def assert_parity(ours: ETA, plain: PlainETA, batches: Sequence[Tensor]) -> None:
    for images in batches:
        torch.testing.assert_close(ours(images), plain.step(images), rtol=1e-6, atol=1e-9)
        assert_adapted(ours, plain.weights)
        kept = plain.dropped[-1][2]
        assert ours.diagnostics["used"] == kept
        assert float(ours.diagnostics["loss"]) == pytest.approx(plain.loss if kept else 0.0, rel=1e-6)


def batches_of(count: int, n: int = 8, seed: int = 0) -> list[Tensor]:
    return [varied_images(n, seed + step).double() for step in range(count)]


@pytest.mark.parametrize(
    ("margin", "diversity", "shows"),
    [
        pytest.param(0.6, 0.6, lambda unsure, alike, kept: any(unsure) and any(alike) and any(kept[2:]), id="both"),
        pytest.param(0.4, 0.8, lambda unsure, alike, kept: kept[0] and not kept[1] and any(kept[2:]), id="nothing new"),
        pytest.param(0.05, 0.4, lambda unsure, alike, kept: not any(kept[:4]) and kept[4], id="late first"),
    ],
)
def test_eta__follows_plain_formulas(margin: float, diversity: float, shows: Callable[..., bool]) -> None:
    net = small_net("batch").double()
    ours, plain = ETA(net, EM(), sgd, margin=margin, diversity=diversity), PlainETA(net, margin, diversity)
    assert_parity(ours, plain, batches_of(8))
    assert shows(*zip(*plain.dropped, strict=True)), plain.dropped  # that the batches are worth the comparison


@settings(max_examples=8, deadline=None)
@given(
    margin=st.floats(0.05, 1.1),
    diversity=st.floats(0.05, 1.1),
    momentum=st.floats(0.05, 1),
    n=st.integers(2, 9),
    seed=st.integers(0, 1000),
)
def test_eta__follows_plain_formulas_at_any_values(
    margin: float, diversity: float, momentum: float, n: int, seed: int
) -> None:
    net = small_net("batch").double()
    ours = ETA(net, EM(), sgd, margin=margin, diversity=diversity, momentum=momentum)
    assert_parity(ours, PlainETA(net, margin, diversity, momentum=momentum), batches_of(4, n, seed))


def test_eta__other_objective_changes_loss_alone() -> None:
    """Selection, weights and moving average keep the entropy: the plain code has it there whatever the objective."""
    net = small_net("batch").double()
    ours = ETA(net, CADF(), sgd, margin=0.6, diversity=0.8)
    assert_parity(ours, PlainETA(net, 0.6, 0.8, objective=lambda z: -(soft(z) * z).sum(-1)), batches_of(5))


def test_eta__objective_with_state_sees_whole_batch() -> None:
    """Its table learns from all samples, also of batches of which none is used."""
    net = small_net("batch").double()
    plain = PlainETA(net, 0.05, 0.4, objective=PlainAdaDEM())
    assert_parity(ETA(net, AdaDEM(), sgd, margin=0.05, diversity=0.4), plain, batches_of(8))
    kept = [kept for _, _, kept in plain.dropped]
    assert kept[0] == 0
    assert any(kept)


def test_eta__average_takes_what_passes_both_filters() -> None:
    method = on_given_logits(still, momentum=0.3)
    assert used(method, UNSURE, UNSURE) == 0  # no average yet
    assert used(method, A, A, UNSURE) == 2  # filtered by entropy alone; the average is A, not a share of it
    assert used(method, A, B, UNSURE) == 1  # of which it takes in B alone: 0.7 A + 0.3 B
    assert used(method, A, UNSURE) == 0
    assert used(method, B) == 1  # 0.49 A + 0.51 B
    assert used(method, B) == 0
    method.reset()
    assert used(method, A, B) == 2


@pytest.mark.parametrize("optimizer", [sgd, functools.partial(torch.optim.Adam, lr=0.05, weight_decay=0.1)])
def test_eta__nothing_selected_moves_nothing(optimizer: Any) -> None:
    """Neither parameters nor moments of the optimizer: what follows is as if the batch had not been."""
    without = on_given_logits(optimizer)
    assert (used(without, A, UNSURE), used(without, B, UNSURE)) == (1, 1)
    for nothing in (UNSURE, A):
        method = on_given_logits(optimizer)
        assert used(method, A, UNSURE) == 1
        before = adapted_of(method)
        assert used(method, nothing, nothing) == 0
        assert method.diagnostics["loss"] == 0
        assert all(torch.equal(value, before[name]) for name, value in adapted_of(method).items())
        assert used(method, B, UNSURE) == 1
        assert all(torch.equal(value, adapted_of(without)[name]) for name, value in adapted_of(method).items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_eta__margin_is_fraction_of_ln_c_in_full(dtype: torch.dtype) -> None:
    """Whatever the precision of the logits, entropies are in full."""
    images = images_with(A)
    p = soft(images.flatten(1)[0, :CLASSES].to(dtype).double())
    share = -float((p * p.log()).sum()) / math.log(CLASSES)
    for margin, expected in ((share + 1e-5, 1), (share - 1e-5, 0)):
        method = ETA(GivenLogits(dtype), EM(), sgd, margin=margin)
        method(images)
        assert method.diagnostics["used"] == expected


@pytest.mark.parametrize(
    ("stream", "diversity", "fisher_alpha"),
    [("imagenet_c", 0.05, 2000), ("cifar10_c", 0.4, 1), ("cifar100_c", 0.1, 1), ("demo", 0.4, 1)],
)
def test_eta__has_settings_of_each_stream(stream: str, diversity: float, fisher_alpha: float) -> None:
    method = composed("method=eata", f"stream={stream}").method
    assert (method.margin, method.diversity, method.fisher_alpha) == (0.4, diversity, fisher_alpha)
    assert method.fisher.root == ("demo" if stream == "demo" else None)
    if stream == "cifar10_c":
        for name in ("eta", "rdumb"):
            assert composed(f"method={name}", f"stream={stream}").method.diversity == diversity


@pytest.mark.parametrize("options", [{"margin": -0.4}, {"diversity": 0.0}, {"momentum": 0}, {"momentum": 1.1}], ids=str)
def test_eta__refuses_values_out_of_range(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with raises_naming(ValueError, name, value):
        ETA(small_net("batch"), EM(), sgd, **options)

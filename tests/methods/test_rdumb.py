"""RDumb: ETA, begun anew."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from helpers.backbones import small_net, varied_images
from helpers.errors import raises_naming
from helpers.plain import PlainAdaDEM, adapted_of, assert_adapted
from helpers.plain_eta import PlainETA
from tta.methods import RDumb
from tta.objectives import EM, AdaDEM, Objective

sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def rdumb(objective: Objective | None = None, **options: Any) -> RDumb:
    net = small_net("batch").double()
    return RDumb(net, objective or EM(), sgd, **{"reset_every": 3, "margin": 0.6, "diversity": 0.8, **options})


def batch(seed: int, n: int = 8) -> torch.Tensor:
    return varied_images(n, seed).double()


def test_rdumb__is_plain_eta_begun_anew() -> None:
    """Weights, momentum, moving average and the state of the objective all begin anew."""
    ours = rdumb(AdaDEM())
    for seed in range(9):
        if seed % 3 == 0:
            plain = PlainETA(small_net("batch").double(), 0.6, 0.8, objective=PlainAdaDEM())
        torch.testing.assert_close(ours(batch(seed)), plain.step(batch(seed)), rtol=1e-6, atol=1e-9)
        assert_adapted(ours, plain.weights)
        assert sum(kept for _, _, kept in plain.dropped) > 0


def test_rdumb__counts_batches_from_any_reset() -> None:
    method, fresh = rdumb(), rdumb()
    expected = fresh(batch(5))
    for seed in range(2):
        method(batch(seed))
    method.reset()
    assert [torch.equal(method(batch(5)), expected) for _ in range(4)] == [True, False, False, True]


def test_rdumb__saved_state_knows_next_reset() -> None:
    method, resumed, fresh = rdumb(), rdumb(), rdumb()
    for seed in range(5):
        method(batch(seed))
    resumed.load_state_dict(method.state_dict())
    for seed in range(5, 8):
        logits = method(batch(seed))
        assert torch.equal(resumed(batch(seed)), logits)
        if seed >= 6:
            assert torch.equal(fresh(batch(seed)), logits)


def test_rdumb__window_goes_on_through_a_reset() -> None:
    method, source = rdumb(window=4, reset_every=5, margin=0.9, diversity=2), rdumb()
    weights = [adapted_of(method)]
    for seed in range(20):
        logits = method(batch(seed, n=1))
        weights.append(adapted_of(method))
        if seed == 7:  # updates are after images 4, 8, 12 ...; the first with 5 batches before it begins anew
            window = torch.cat([batch(s, n=1) for s in range(4, 8)])
            torch.testing.assert_close(logits, source(window)[-1:])
    scales = [w["body.1.weight"] for w in weights]
    changed = [seed for seed in range(20) if not torch.equal(scales[seed], scales[seed + 1])]
    assert changed == [3, 7, 11, 15, 19]  # the rhythm of the window is kept


@pytest.mark.parametrize("value", [0, 2.5, None])
def test_rdumb__refuses_no_number_of_batches(value: Any) -> None:
    with raises_naming(ValueError, "reset_every", value):
        rdumb(reset_every=value)

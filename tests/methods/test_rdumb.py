"""RDumb: ETA, begun anew."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from helpers.backbones import small_net, varied_images
from helpers.plain import weights_of
from helpers.plain_eta import PlainETA
from tta.methods import RDumb
from tta.objectives import EM, AdaDEM

sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def rdumb(**options: Any) -> RDumb:
    net = small_net("batch").double()
    return RDumb(net, EM(), sgd, **{"reset_every": 3, "margin": 0.6, "diversity": 0.8, **options})


def batch(seed: int, n: int = 8) -> torch.Tensor:
    return varied_images(n, seed).double()


def test_is_an_eta_of_the_plain_formulas_for_every_stretch_of_batches() -> None:
    ours = rdumb()
    for seed in range(9):
        if seed % 3 == 0:
            plain = PlainETA(small_net("batch").double(), 0.6, 0.8)
        np.testing.assert_allclose(ours(batch(seed)).numpy(), plain.step(batch(seed)).numpy(), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(weights_of(ours.backbone), plain.weights, rtol=1e-6, atol=1e-9)
        assert sum(kept for _, _, kept in plain.dropped) > 0


def test_the_same_batches_give_the_same_logits_after_a_reset() -> None:
    """Weights, momentum, moving average and the state of the objective."""
    method = rdumb(reset_every=4)
    method.objective = AdaDEM()
    first = [method(batch(seed)) for seed in range(4)]
    second = [method(batch(seed)) for seed in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[3], rdumb(reset_every=4)(batch(3)))


def test_batches_are_counted_from_the_last_reset_whoever_asked_for_it() -> None:
    method = rdumb()
    fresh = rdumb()(batch(5))
    for seed in range(2):
        method(batch(seed))
    method.reset()
    for seed in range(3):
        method(batch(seed))
    assert torch.equal(method(batch(5)), fresh)


def test_a_saved_state_knows_when_the_next_reset_is_due() -> None:
    method, resumed = rdumb(), rdumb()
    for seed in range(5):
        method(batch(seed))
    resumed.load_state_dict(method.state_dict())
    for seed in range(5, 8):
        assert torch.equal(resumed(batch(seed)), method(batch(seed)))
    fresh = rdumb()
    fresh(batch(6))
    assert torch.equal(method.average, (fresh(batch(7)), fresh.average)[1])


def test_with_a_window_the_reset_waits_for_an_update_and_the_window_stays() -> None:
    method = rdumb(window=4, reset_every=5, margin=0.9, diversity=2)
    source = rdumb()
    weights = []
    for seed in range(20):
        logits = method(batch(seed, n=1))
        weights.append(torch.cat([p.detach().flatten() for p in method.parameters() if p.requires_grad]))
        if seed == 7:  # updates are after images 4, 8, 12 ...; the first with 5 batches before it begins anew
            window = torch.cat([batch(s, n=1) for s in range(4, 8)])
            torch.testing.assert_close(logits, source(window)[-1:])
            torch.testing.assert_close(method.recent, window)
    changed = [seed for seed in range(1, 20) if not torch.equal(weights[seed], weights[seed - 1])]
    assert changed == [3, 7, 11, 15, 19]  # the rhythm of the window is kept


@pytest.mark.parametrize("value", [0, 2.5, None])
def test_wrong_number_of_batches(value: Any) -> None:
    with pytest.raises(ValueError, match=f"method.reset_every must be a whole number of at least 1, got {value}"):
        rdumb(reset_every=value)

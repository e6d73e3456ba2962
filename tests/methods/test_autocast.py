"""Autocast keeps low-precision copies of weights for as long as it is entered; a step that changes weights must not."""

from __future__ import annotations

import functools

import torch

from helpers.backbones import small_net, some_images
from tta.methods import ParameterChoice, Tent
from tta.objectives import EM


def test_autocast__second_step_sees_new_weights() -> None:
    net, images = small_net("layer"), some_images()
    sgd = functools.partial(torch.optim.SGD, lr=0.5)
    twice, once = (Tent(net, EM(), sgd, ParameterChoice("all"), steps=steps) for steps in (2, 1))
    with torch.autocast("cpu", torch.bfloat16):
        logits = twice(images)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            expected = once(images)
    assert torch.equal(logits, expected)


def test_autocast__of_the_caller_goes_on() -> None:
    method = Tent(small_net("layer"), EM(), functools.partial(torch.optim.SGD, lr=0.5))
    with torch.autocast("cpu", torch.bfloat16):
        assert method(some_images()).dtype == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_cache_enabled()
    assert method(some_images()).dtype == torch.float32

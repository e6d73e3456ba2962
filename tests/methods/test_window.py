"""A window of recent images gives BatchNorm a batch where single images arrive."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.backbones import small_net, some_images
from helpers.errors import raises_naming
from tta.methods import BNAdapt, Tent
from tta.objectives import EM

sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)


@settings(max_examples=15, deadline=None)
@given(window=st.integers(2, 9), sizes=st.lists(st.integers(1, 10), min_size=1, max_size=8))
def test_window__statistics_are_of_the_last_images(window: int, sizes: list[int]) -> None:
    images = some_images(sum(sizes))
    method = BNAdapt(small_net("batch"), window=window)
    plain = BNAdapt(small_net("batch"))
    end = 0
    for size in sizes:
        end += size
        logits = method(images[end - size : end])
        seen = images[max(0, end - max(window, size)) : end]
        seen = seen if len(seen) > 1 else seen.repeat(2, 1, 1, 1)
        torch.testing.assert_close(logits, plain(seen)[-size:], rtol=0, atol=1e-6)


def test_window__one_update_for_each_window() -> None:
    images = some_images(12)
    single, batched = (Tent(small_net("batch"), EM(), sgd, window=window) for window in (4, 0))
    for start in range(0, 12, 4):
        block = images[start : start + 4]
        for image in block[:3]:
            before = [p.clone() for p in single.parameters()]
            single(image[None])
            assert all(torch.equal(a, b) for a, b in zip(single.parameters(), before, strict=True))
        # The last image of a window is predicted, and learnt from, with those before it: as one batch of four.
        torch.testing.assert_close(single(block[3:]), batched(block)[3:], rtol=0, atol=1e-6)
    for a, b in zip(single.parameters(), batched.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_window__first_image_is_duplicated() -> None:
    method = Tent(small_net("batch"), EM(), sgd, window=4)
    image = some_images(1)
    expected = BNAdapt(small_net("batch"))(image.repeat(2, 1, 1, 1))[:1]
    torch.testing.assert_close(method(image), expected)


def test_window__large_batches_pass_as_they_are() -> None:
    one, other = (Tent(small_net("batch"), EM(), sgd, window=window) for window in (8, 0))
    for seed in range(3):
        assert torch.equal(one(some_images(8, seed)), other(some_images(8, seed)))


def test_window__is_reset_and_saved() -> None:
    images = some_images(9)
    method = Tent(small_net("batch"), EM(), sgd, window=4)
    first = [method(image[None]) for image in images]
    method.reset()
    again = [method(image[None]) for image in images[:6]]
    state = method.state_dict()
    fresh = Tent(small_net("batch"), EM(), sgd, window=4)
    fresh.load_state_dict(state)
    again += [fresh(image[None]) for image in images[6:]]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_window__is_named_where_it_would_help() -> None:
    with raises_naming(ValueError, "BNAdapt", "BatchNorm", 1, 2, "method.window"):
        BNAdapt(small_net("batch"))(some_images(1))


@pytest.mark.parametrize("window", [-1, 1.5, True])
def test_window__other_values_are_refused(window: int) -> None:
    with raises_naming(ValueError, "method.window", window):
        BNAdapt(small_net("batch"), window=window)

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tta.streams import Scenario


@given(n=st.integers(0, 300), seed=st.integers(), domain=st.text())
def test_shuffle_is_a_permutation_and_repeatable(n: int, seed: int, domain: str) -> None:
    index = torch.arange(n) * 3
    first, second = (Scenario(order="shuffle").arrange(index, domain, seed) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first.sort().values, index)


def test_each_seed_and_each_domain_has_its_own_order() -> None:
    index = torch.arange(50)
    orders = {
        tuple(Scenario().arrange(index, domain, seed).tolist()) for domain in ("fog-5", "fog-4") for seed in (-1, 0, 1)
    }
    assert len(orders) == 6


def test_global_generator_has_no_part_in_the_order() -> None:
    index = torch.arange(50)
    before = torch.get_rng_state()
    first = Scenario().arrange(index, "fog-5", 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert torch.equal(Scenario().arrange(index, "fog-5", 0), first)


def test_file_order_is_that_of_the_data_set() -> None:
    index = torch.tensor([4, 1, 3])
    assert torch.equal(Scenario(order="file").arrange(index, "fog-5", 3), index)


def test_wrong_reset_lists_the_right_ones() -> None:
    with pytest.raises(ValueError, match=r"scenario.reset must be one of domain, never; got 'always'"):
        Scenario(reset="always")


def test_wrong_order_lists_the_right_ones() -> None:
    with pytest.raises(ValueError, match=r"scenario.order must be one of shuffle, file; got 'random'"):
        Scenario(order="random")

"""The plan of a stream, and the batches that follow it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.errors import raises_naming
from helpers.numbered_images import Numbered, domain, stream
from helpers.small_tree import same
from tta.streams import BatchPlan, Domain, DomainVisit, Scenario, Stream

SINGLE, CONTINUAL = Scenario(reset="domain"), Scenario(reset="never")


def order(of: Stream, name: str, scenario: Scenario = SINGLE, seed: int = 0) -> list[int]:
    plan = of.plan(scenario, seed)
    return [i for planned in plan if planned.visits[0].domain == name for i in planned.index.tolist()]


def number_of(planned: BatchPlan) -> int:
    """The one domain whose images are in a batch."""
    (visit,) = planned.visits
    assert not planned.domain_index.any()
    return visit.number


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    batch_size=st.integers(1, 25),
    limit=st.none() | st.integers(1, 70),
    seed=st.integers(0, 2**40),
)
def test_plan__has_each_image_once_in_full_batches(
    sizes: list[int], batch_size: int, limit: int | None, seed: int
) -> None:
    domains = [domain(f"d{k}", n) for k, n in enumerate(sizes)]
    plan = stream(*domains, batch_size=batch_size, limit=limit).plan(CONTINUAL, seed)
    assert [number_of(planned) for planned in plan] == sorted(number_of(planned) for planned in plan)
    for number, size in enumerate(sizes):
        parts = [planned for planned in plan if number_of(planned) == number]
        index = torch.cat([planned.index for planned in parts])
        expected = size if limit is None else min(limit, size)
        assert len(set(index.tolist())) == len(index) == expected
        assert 0 <= index.min() <= index.max() < size
        assert {len(planned.index) for planned in parts[:-1]} <= {batch_size}
        assert 1 <= len(parts[-1].index) <= batch_size
        assert [planned.starts_domain for planned in parts] == [True] + [False] * (len(parts) - 1)


@given(n=st.integers(1, 500), limit=st.integers(1, 500))
def test_limit__is_spread_evenly(n: int, limit: int) -> None:
    index = order(stream(domain(n=n), limit=limit), "fog", Scenario(order="file"))
    gaps = {b - a for a, b in zip(index, [*index[1:], n], strict=True)}
    assert index[0] == 0
    assert gaps <= {n // len(index), -(-n // len(index))}


def test_limit__keeps_the_shares_of_classes() -> None:
    labels = torch.arange(1000) // 100
    chosen = Stream([Domain("fog", 5, labels, Numbered())], 10, 50, limit=50).plan(SINGLE, 3)
    assert labels[chosen[0].index].bincount().tolist() == [5] * 10


def test_limit__is_the_same_for_all_seeds_and_domains() -> None:
    limited = stream(domain("fog"), domain("snow"), limit=8)
    chosen = {frozenset(order(limited, name, seed=seed)) for name in ("fog", "snow") for seed in range(5)}
    assert len(chosen) == 1


def test_seed__changes_the_order_only() -> None:
    first, second = (order(stream(), "fog", seed=seed) for seed in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second) == list(range(23))


def test_order__is_independent_of_other_domains() -> None:
    fog, snow, rain = domain("fog"), domain("snow", 11), domain("rain", 40)
    alone = order(stream(fog), "fog", seed=4)
    assert order(stream(snow, fog, rain), "fog", seed=4) == alone
    assert order(stream(fog, snow, batch_size=3), "fog", CONTINUAL, seed=4) == alone


def test_order__differs_between_severities() -> None:
    assert order(stream(domain(severity=1)), "fog") != order(stream(domain(severity=2)), "fog")


def test_order__file_is_that_of_the_data_set() -> None:
    assert order(stream(), "fog", Scenario(order="file"), seed=9) == list(range(23))


@pytest.mark.parametrize(("scenario", "resets"), [(SINGLE, [0, 3]), (CONTINUAL, [])], ids=["single", "continual"])
def test_reset__before_each_domain_or_never(scenario: Scenario, resets: list[int]) -> None:
    plan = stream(domain("fog"), domain("snow")).plan(scenario, 0)
    assert [k for k, planned in enumerate(plan) if planned.starts_domain] == [0, 3]
    assert [k for k, planned in enumerate(plan) if planned.reset] == resets


def test_batches__are_those_planned() -> None:
    made = stream(domain("fog", severity=2), domain("snow", severity=3))
    plan = made.plan(SINGLE, 1)
    batches = list(made.batches(plan))
    assert len(batches) == len(plan) == 6
    for batch, planned in zip(batches, plan, strict=True):
        assert torch.equal(batch.index, planned.index)
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.index)
        assert torch.equal(batch.labels, batch.index % 7)
        assert (batch.starts_domain, batch.reset) == (planned.starts_domain, planned.reset)
        assert batch.visits == (DomainVisit(0, "fog", 2, 1), DomainVisit(1, "snow", 3, 1))[number_of(planned) :][:1]
        assert batch.images.dtype == torch.uint8
        assert batch.skipped == ()


def test_batches__of_a_slice_of_the_plan() -> None:
    made = stream()
    plan = made.plan(SINGLE, 1)
    (batch,) = made.batches(plan[2:])
    assert torch.equal(batch.index, plan[2].index)
    assert not batch.starts_domain


def test_skipped__lose_their_labels_and_indices() -> None:
    made = stream(domain(load=Numbered(broken=(3, 20))))
    batches = list(made.batches(made.plan(SINGLE, 0)))
    assert sorted(name for batch in batches for _, name in batch.skipped) == ["20", "3"]
    assert sum(len(batch.index) for batch in batches) == 21
    for batch in batches:
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.index)
        assert torch.equal(batch.labels, batch.index % 7)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers__change_only_the_process() -> None:
    domains = domain("fog", load=Numbered(broken=(5,))), domain("snow")
    alone, helped = stream(*domains, batch_size=4), stream(*domains, batch_size=4, workers=2)
    plan = alone.plan(SINGLE, 2)
    batches = list(alone.batches(plan))
    assert len(batches) == 12
    assert same(list(helped.batches(helped.plan(SINGLE, 2))), batches)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_error__of_an_image_keeps_its_message(workers: int) -> None:
    made = stream(domain(load=Numbered(broken=(12,), stop=True)), workers=workers)
    batches = made.batches(made.plan(Scenario(order="file"), 0))
    assert len(next(batches).index) == 10
    with raises_naming(ValueError, "image 12 is broken"):
        next(batches)


def test_batches__leave_the_global_generator_alone() -> None:
    made = stream()
    before = torch.get_rng_state()
    list(made.batches(made.plan(SINGLE, 0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_digest__is_of_data_not_of_batches() -> None:
    known = stream(domain("fog"), domain("snow")).digest
    assert stream(domain("fog"), domain("snow"), batch_size=3, limit=5).digest == known
    others = {
        stream(domain("snow"), domain("fog")).digest,
        stream(domain("fog"), domain("snow", severity=4)).digest,
        stream(domain("fog"), domain("snow", n=24)).digest,
        stream(domain("fog"), Domain("snow", 5, torch.arange(23) % 6, Numbered())).digest,
        stream(domain("fog"), domain("snow", load=Numbered(shift=1))).digest,
    }
    assert len(others - {known}) == 5


def test_stream__needs_a_domain() -> None:
    with raises_naming(ValueError, "stream.corruptions"):
        Stream([], 10, 5)


@pytest.mark.parametrize("value", [0, 2.0, True], ids=repr)
@pytest.mark.parametrize("key", ["batch_size", "limit"])
def test_stream__refuses_wrong_numbers(key: str, value: Any) -> None:
    with raises_naming(ValueError, f"stream.{key}", repr(value)):
        stream(**{key: value})


@pytest.mark.parametrize("value", [-1, 1.5])
def test_stream__refuses_wrong_workers(value: Any) -> None:
    with raises_naming(ValueError, "stream.workers", repr(value)):
        stream(workers=value)

"""How domains follow one another: mixed, in rounds, at one severity after another; and what is read of each."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.errors import raises_naming
from helpers.numbered_images import Numbered, domain, stream
from tta.streams import Batch, BatchPlan, Domain, DomainVisit, Scenario, Stream
from tta.streams.arrays import ArrayImages
from tta.streams.datasets import demo
from tta.streams.options import choose_severities
from tta.streams.types import domain_key

MIXED = Scenario(reset="never", mix=True)
SEQUENCE = [1, 2, 3, 4, 5, 4, 3, 2, 1]


def arrivals(plan: list[BatchPlan]) -> list[tuple[DomainVisit, int]]:
    """Each image to come, in order: its visit, and its place in the data set."""
    return [
        (planned.visits[domain_index], index)
        for planned in plan
        for domain_index, index in zip(planned.domain_index.tolist(), planned.index.tolist(), strict=True)
    ]


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    batch_size=st.integers(1, 25),
    rounds=st.integers(1, 3),
    order=st.sampled_from(["shuffle", "sorted", "dirichlet"]),
    mix=st.booleans(),
    seed=st.integers(0, 2**40),
)
def test_rounds__bring_each_image_once(
    sizes: list[int], batch_size: int, rounds: int, order: str, mix: bool, seed: int
) -> None:
    made = stream(*(domain(f"d{k}", n) for k, n in enumerate(sizes)), batch_size=batch_size)
    delta = 0.1 if order == "dirichlet" else None
    plan = made.plan(Scenario("never", order, delta, mix=mix, rounds=rounds), seed)
    found = Counter(arrivals(plan))
    expected = {
        (DomainVisit(k, f"d{k}", 5, r + 1), i) for r in range(rounds) for k, n in enumerate(sizes) for i in range(n)
    }
    assert set(found) == expected
    assert set(found.values()) == {1}
    assert [v.visit for v, _ in arrivals(plan)] == sorted(v.visit for v, _ in arrivals(plan))
    lengths = [sum(sizes)] * rounds if mix else sizes * rounds
    cuts = [[batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0) for n in lengths]
    assert [len(planned.index) for planned in plan] == [size for cut in cuts for size in cut]
    starts = [number == 0 for cut in cuts for number in range(len(cut))]
    assert [planned.starts_domain for planned in plan] == starts


def test_mix__shuffles_domains_together() -> None:
    """In an even mixture the next image is of the same domain with probability (n - 1) / (4 n - 1)."""
    n = 500
    made = stream(*(domain(f"d{k}", n) for k in range(4)), batch_size=40)
    numbers = [visit.number for visit, _ in arrivals(made.plan(MIXED, 0))]
    same = sum(a == b for a, b in pairwise(numbers))
    assert same / len(numbers) == pytest.approx((n - 1) / (4 * n - 1), abs=0.04)
    for quarter in np.split(np.array(numbers), 4):
        assert np.bincount(quarter, minlength=4).tolist() == pytest.approx([n / 4] * 4, abs=40)


def test_mix__is_ordered_as_one_domain() -> None:
    fog, snow = domain("fog", 70), domain("snow", 70)
    made = stream(fog, snow, batch_size=20)
    labels = [i % 7 for _, i in arrivals(made.plan(Scenario("never", "sorted", mix=True), 0))]
    assert labels == sorted(labels)
    numbers = [visit.number for visit, _ in arrivals(made.plan(Scenario("never", "sorted", mix=True), 0))]
    assert all(set(numbers[start : start + 20]) == {0, 1} for start in range(0, 140, 20))
    correlated = [i % 7 for _, i in arrivals(made.plan(Scenario("never", "dirichlet", 1e-4, mix=True), 0))]
    assert len(list(groupby(correlated))) == 7


@pytest.mark.parametrize("mix", [False, True])
def test_rounds__first_is_the_plain_order(mix: bool) -> None:
    made = stream(domain("fog"), domain("snow"))
    plans = [made.plan(Scenario("never", mix=mix, rounds=rounds), 3) for rounds in (1, 3)]
    once, often = (arrivals(plan) for plan in plans)
    assert often[: len(once)] == once
    rounds = [[(visit.number, i) for visit, i in often[k * len(once) :][: len(once)]] for k in range(3)]
    assert len({tuple(each) for each in rounds}) == 3
    assert sorted(rounds[0]) == sorted(rounds[1]) == sorted(rounds[2])


def test_rounds__repeat_the_sequence_of_domains() -> None:
    plan = stream(domain("fog"), domain("snow")).plan(Scenario(rounds=2), 0)
    starts = [planned.visits for planned in plan if planned.starts_domain]
    assert starts == [(DomainVisit(k, name, 5, r),) for r in (1, 2) for k, name in enumerate(("fog", "snow"))]
    assert [planned.reset for planned in plan] == [planned.starts_domain for planned in plan]


@pytest.mark.parametrize("mix", [False, True])
def test_episodic__resets_before_each_batch(mix: bool) -> None:
    plan = stream(domain("fog"), domain("snow")).plan(Scenario("batch", mix=mix), 0)
    assert len(plan) == (5 if mix else 6)
    assert all(planned.reset for planned in plan)


def test_reset__never_with_mix_and_rounds() -> None:
    made = stream(domain("fog"), domain("snow"))
    assert not any(planned.reset for planned in made.plan(Scenario("never", mix=True, rounds=2), 0))


def test_severity__repeated_is_another_visit() -> None:
    made = stream(*(domain("fog", severity=s) for s in (1, 2, 1)), domain("snow", severity=1))
    plan = made.plan(Scenario("never", rounds=2), 0)
    visits = [planned.visits[0] for planned in plan if planned.starts_domain]
    assert [(v.domain, v.severity, v.visit) for v in visits] == [
        *(("fog", 1, 1), ("fog", 2, 1), ("fog", 1, 2), ("snow", 1, 1)),
        *(("fog", 1, 3), ("fog", 2, 2), ("fog", 1, 4), ("snow", 1, 2)),
    ]
    orders = [tuple(i for visit, i in arrivals(plan) if visit == v) for v in visits]
    assert len(set(orders)) == len(visits)
    assert orders[0] == tuple(i for _, i in arrivals(stream(domain("fog", severity=1)).plan(Scenario(), 0)))


def test_long_tailed__follows_the_limit() -> None:
    labels = torch.arange(1000) // 100
    made = Stream([Domain("fog", 5, labels, Numbered()), Domain("snow", 5, labels, Numbered())], 10, 50, limit=500)
    found = arrivals(made.plan(Scenario(long_tailed=10), 0))
    sizes = [round(50 * 10 ** (-k / 9)) for k in range(10)]
    for number in (0, 1):
        assert labels[[i for visit, i in found if visit.number == number]].bincount().tolist() == sizes


def shaded(count: int = 3, n: int = 9) -> Stream:
    """Image i of domain d is filled with 10 d + i, in channels-last memory; its label says the same."""
    domains = []
    for number in range(count):
        values = (10 * number + np.arange(n)).astype(np.uint8).reshape(-1, 1, 1, 1)
        images = ArrayImages(np.broadcast_to(values, (n, 4, 4, 3)))
        domains.append(Domain(f"d{number}", number, 10 * number + torch.arange(n), images))
    return Stream(domains, 10 * count, 4)


def read(made: Stream, scenario: Scenario, seed: int = 0) -> list[Batch]:
    return list(made.batches(made.plan(scenario, seed)))


def test_mix__batches_keep_the_planned_order() -> None:
    made = shaded()
    plan = made.plan(MIXED, 0)
    for batch, planned in zip(made.batches(plan), plan, strict=True):
        assert torch.equal(batch.index, planned.index)
        assert torch.equal(batch.domain_index, planned.domain_index)
        numbers = 10 * batch.domain_index + batch.index
        assert torch.equal(batch.images[:, 2, 3, 3].long(), numbers)
        assert torch.equal(batch.labels, numbers)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.domain == "mixed"
        assert [visit.domain for visit in batch.visits] == ["d0", "d1", "d2"]


def test_mix__skipped_images_name_their_domain() -> None:
    made = stream(domain("fog", load=Numbered(broken=(3,))), domain("snow", load=Numbered(broken=(5, 20))))
    batches = read(made, MIXED)
    assert sorted(image for batch in batches for image in batch.skipped) == [(0, "3"), (1, "20"), (1, "5")]
    left = Counter((m, i) for b in batches for m, i in zip(b.domain_index.tolist(), b.index.tolist(), strict=True))
    assert set(left) == {(m, i) for m in (0, 1) for i in range(23)} - {(0, 3), (1, 5), (1, 20)}
    for batch in batches:
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.index)
        assert torch.equal(batch.labels, batch.index % 7)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_mix__workers_change_nothing() -> None:
    alone, helped = (stream(domain("fog"), domain("snow"), batch_size=4, workers=w) for w in (0, 2))
    for one, other in zip(read(alone, MIXED), read(helped, MIXED), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.domain_index, other.domain_index)
        assert one.visits == other.visits


def test_batch__pickles_small() -> None:
    (batch, *_) = read(stream(domain(n=20_000), batch_size=2), Scenario())
    assert len(pickle.dumps(batch.visits)) < 1000  # workers hand it over: not the labels of the whole domain


def test_place__is_what_all_visits_share() -> None:
    fog, snow = DomainVisit(0, "fog", 5, 1), DomainVisit(1, "snow", 5, 1)
    assert domain_key([fog]) == {"domain": "fog", "severity": 5, "visit": 1}
    assert domain_key([fog, snow]) == {"domain": "mixed", "severity": 5, "visit": 1}
    other = DomainVisit(1, "fog", 3, 1)
    assert domain_key([fog, other]) == {"domain": "fog", "severity": None, "visit": 1}
    assert domain_key([fog, DomainVisit(0, "fog", 5, 2)])["visit"] is None


def test_severities__are_one_or_several() -> None:
    assert choose_severities(3) == [3]
    assert choose_severities(SEQUENCE) == SEQUENCE
    assert choose_severities((5, 5)) == [5, 5]
    for wrong, got in (
        ([], "empty"),
        ([1, 6], "6"),
        ([[1]], "[1]"),
        ("12", "'12'"),
    ):
        with raises_naming(ValueError, "stream.severity", got):
            choose_severities(wrong)  # type: ignore[arg-type]


def test_severities__follow_within_each_corruption(demo_cache: Path) -> None:
    made = demo.stream(["brightness", "contrast"], severity=[1, 2, 1], limit=20)
    assert [(d.name, d.severity) for d in made.domains] == [
        (name, severity) for name in ("brightness", "contrast") for severity in (1, 2, 1)
    ]
    index = torch.arange(5)
    images = [d.load(index).images for d in made.domains]
    assert torch.equal(images[0], images[2])
    for number, severity in ((0, 1), (1, 2)):
        (alone,) = demo.stream("brightness", severity=severity).domains
        assert torch.equal(images[number], alone.load(index).images)

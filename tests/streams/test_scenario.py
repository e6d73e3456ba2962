"""Scenarios against their definitions: what arrives, how classes follow one another, what is left out."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from helpers.compositions import composed
from helpers.errors import raises_naming
from tta.cli import CONFIGS
from tta.runs.fingerprint import BACKCOMPAT_DEFAULTS
from tta.streams import Scenario
from tta.streams.scenario import MOST_SLOTS, split

OF_ORDER: dict[str, dict[str, float]] = {
    "shuffle": {},
    "file": {},
    "sorted": {},
    "dirichlet": {"delta": 0.1},
    "imbalance": {"imbalance_ratio": 50},
}
DRAWN = [order for order in OF_ORDER if order != "file"]
FIRST_OF_SHARE = [19, 23, 28, 32, 39, 41, 42, 45]  # of ten classes with 20 images each, seed 0


def scenario(order: str, **options: Any) -> Scenario:
    return Scenario(order=order, **{**OF_ORDER[order], **options})


def arranged(order: str, labels: torch.Tensor, domain: str = "fog-5", seed: int = 0, **options: float) -> torch.Tensor:
    """Labels in the order of their arrival."""
    return labels[scenario(order, **options).order_of(labels, domain, seed)]


def balanced(classes: int, each: int) -> torch.Tensor:
    """Labels as data sets have them, in no order."""
    return torch.arange(classes).repeat(each)


def runs(labels: torch.Tensor) -> list[tuple[int, int]]:
    """Class and length of each stretch of equal labels."""
    return [(label, len(list(stretch))) for label, stretch in itertools.groupby(labels.tolist())]


@pytest.mark.parametrize("order", OF_ORDER)
@given(labels=st.lists(st.integers(0, 6).map(lambda k: 3 * k), max_size=120), seed=st.integers(), domain=st.text())
def test_order__has_each_image_once_and_repeats(order: str, labels: list[int], seed: int, domain: str) -> None:
    given_labels = torch.tensor(labels, dtype=torch.int64)
    first, second = (scenario(order).order_of(given_labels, domain, seed) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first.sort().values, torch.arange(len(labels)))


@pytest.mark.parametrize("order", DRAWN)
def test_order__depends_on_seed_and_domain(order: str) -> None:
    labels = balanced(5, 10)
    orders = {
        tuple(scenario(order).order_of(labels, domain, seed).tolist())
        for domain in ("fog-5", "fog-4")
        for seed in (-1, 0, 1)
    }
    assert len(orders) == 6


@pytest.mark.parametrize("order", DRAWN)
def test_order__ignores_global_generators(order: str) -> None:
    labels = balanced(5, 10)
    before, numpys = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    first = scenario(order).order_of(labels, "fog-5", 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert str(np.random.get_state()) == numpys  # noqa: NPY002
    torch.manual_seed(7)
    assert torch.equal(scenario(order).order_of(labels, "fog-5", 0), first)


@pytest.mark.parametrize(
    ("domain", "seed", "begins", "digest"),
    [
        ("fog-5", 0, [773, 981, 681, 97, 199, 764], "781915f91c0408f1"),
        ("snow-3", 1, [903, 492, 376, 383, 28, 724], "d54c7a0730daaf59"),
    ],
)
def test_shuffle__is_the_recorded_order(domain: str, seed: int, begins: list[int], digest: str) -> None:
    order = Scenario().order_of(torch.arange(1000) % 10, domain, seed)
    assert order[:6].tolist() == begins
    assert hashlib.sha256(order.numpy().tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("order", ["shuffle", "file"])
def test_order__without_classes_ignores_labels(order: str) -> None:
    found = [scenario(order).order_of(labels, "fog-5", 0) for labels in (torch.zeros(50).long(), torch.arange(50))]
    assert torch.equal(*found)
    assert (found[0].tolist() == list(range(50))) == (order == "file")


def test_sorted__is_shuffled_within_each_class() -> None:
    labels = balanced(4, 25) * 2
    order = scenario("sorted").order_of(labels, "fog-5", 0)
    assert runs(labels[order]) == [(0, 25), (2, 25), (4, 25), (6, 25)]
    assert order[:25].tolist() != sorted(order[:25].tolist())


@pytest.mark.parametrize("delta", [0.1, 10.0])
def test_dirichlet__shares_follow_the_distribution(delta: float) -> None:
    """The sum of squares of shares drawn from Dirichlet(δ, ..., δ) over S slots is (δ + 1) / (S δ + 1) on average."""
    classes, each, drawn = 20, 400, 40
    concentration = []
    for seed in range(drawn):
        # A class is at most once in a slot, and so in one stretch of it; that two slots meet in a class is rare.
        stretches = runs(arranged("dirichlet", balanced(classes, each), seed=seed, delta=delta))
        concentration.append(sum((length / each) ** 2 for _, length in stretches) / classes)
    expected = (delta + 1) / (classes * delta + 1)
    error = float(np.std(concentration)) / math.sqrt(drawn)
    assert np.mean(concentration) == pytest.approx(expected, rel=0.02, abs=4 * error)


def test_dirichlet__huge_delta_mixes_classes_evenly() -> None:
    classes, each = 8, 80
    labels = arranged("dirichlet", balanced(classes, each), delta=1e9)
    slots = labels.split(each)  # 8 slots of 8 classes, 10 images of each (9 to 11, as shares are rounded)
    turns = {tuple(dict.fromkeys(slot[2:-2].tolist())) for slot in slots}
    assert all(set(turn) == set(range(classes)) for turn in turns)
    assert len(turns) > 1  # classes follow one another in another order in each
    assert {length for _, length in runs(labels)} <= {9, 10, 11, 19, 20, 21}


def test_dirichlet__tiny_delta_sorts_by_class() -> None:
    orders = [[k for k, _ in runs(arranged("dirichlet", balanced(6, 30), seed=s, delta=1e-4))] for s in range(5)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len(set(map(tuple, orders))) > 1


def test_dirichlet__has_as_many_slots_as_rotta() -> None:
    classes, each = MOST_SLOTS + 50, 2 * MOST_SLOTS
    labels = arranged("dirichlet", balanced(classes, each), delta=1e9)
    # Each class comes once in a slot, so there are slots x classes stretches but for those that meet.
    assert len(runs(labels)) == pytest.approx(MOST_SLOTS * classes, rel=0.01)


@pytest.mark.parametrize("ratio", [1, 100, math.inf])
def test_imbalance__makes_one_class_likelier(ratio: float) -> None:
    """SAR's proportions: q_max = r / (r + C - 1) for the class of a step, q_min = 1 / (r + C - 1) for each other."""
    classes, each = 10, 2000
    labels = arranged("imbalance", balanced(classes, each), imbalance_ratio=ratio)
    steps = [step[100:-100].bincount(minlength=classes) / (each - 200) for step in labels.split(each)]
    high = 1 / (1 + (classes - 1) / ratio)
    low = (1 - high) / (classes - 1)
    tolerance = 4 * math.sqrt(0.25 / each)
    if ratio > 1:
        dominant = [int(step.argmax()) for step in steps]
        assert sorted(dominant) == list(range(classes))
        assert dominant != sorted(dominant)
    else:
        dominant = list(range(classes))
    for k, step in zip(dominant, steps, strict=True):
        assert float(step[k]) == pytest.approx(high, abs=tolerance)
        others = torch.cat([step[:k], step[k + 1 :]])
        assert others.tolist() == pytest.approx([low] * (classes - 1), abs=tolerance)
    if ratio == math.inf:
        assert len(runs(labels)) == classes


def test_order__of_one_class_is_a_shuffle() -> None:
    for order in ("sorted", "dirichlet", "imbalance"):
        assert arranged(order, torch.full((30,), 4)).tolist() == [4] * 30


@given(classes=st.integers(1, 12), each=st.integers(1, 60), ratio=st.floats(1, 1000))
def test_long_tailed__class_sizes_decay_exponentially(classes: int, each: int, ratio: float) -> None:
    labels = balanced(classes, each)
    kept = Scenario(long_tailed=ratio).select(labels)
    sizes = labels[kept].bincount(minlength=classes).tolist()
    expected = [each * ratio ** (-k / (classes - 1)) if k else each for k in range(classes)]
    assert all(
        abs(size - share) <= 0.5 or (size == 1 and share < 1) for size, share in zip(sizes, expected, strict=True)
    )
    assert torch.equal(kept, kept.unique())  # each once, in the order of the data set


def test_long_tailed__keeps_evenly_spaced_images() -> None:
    labels = balanced(2, 100)
    kept = Scenario(long_tailed=10).select(labels)
    last = kept[labels[kept] == 1]
    assert len(last) == 10
    assert set(last.diff().tolist()) == {20}


def test_long_tailed__of_one_keeps_all_images() -> None:
    assert Scenario().select(torch.tensor([3, 3, 1])).tolist() == [0, 1, 2]
    assert Scenario(long_tailed=1).select(torch.tensor([3, 3, 1])).tolist() == [0, 1, 2]


@given(
    sizes=st.lists(st.integers(1, 25), min_size=2, max_size=8),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**40),
    long_tailed=st.sampled_from([None, 3]),
)
def test_share__and_rest_split_every_class(
    sizes: list[int], share: float, seed: int, long_tailed: float | None
) -> None:
    labels = torch.tensor([k for k, size in enumerate(sizes) for _ in range(size)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    everything = Scenario(long_tailed=long_tailed).select(labels)
    count = round(share * len(everything))
    assume(0 < count < len(everything))
    parts = [
        Scenario(part=part, share=share, share_seed=seed, long_tailed=long_tailed).select(labels)
        for part in ("share", "rest")
    ]
    assert [len(part) for part in parts] == [count, len(everything) - count]
    assert torch.equal(torch.cat(parts).sort().values, everything)
    assert all(torch.equal(part, part.sort().values) for part in parts)
    due = labels[everything].bincount() * count / len(everything)
    assert ((labels[parts[0]].bincount(minlength=len(due)) - due).abs() < 1).all()


def test_share__depends_on_labels_and_its_seed() -> None:
    labels = balanced(10, 20)
    shares = [split(labels, 0.2, seed)[0].tolist() for seed in (0, 1, 0)]
    assert shares[0] == shares[2] != shares[1]
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    assert split(labels, 0.2, 0)[0].tolist() == shares[0]
    # Of classes with one image each, every seed takes others.
    assert split(torch.arange(50), 0.2, 0)[0].tolist() != split(torch.arange(50), 0.2, 1)[0].tolist()
    # What results were made with.
    assert shares[0][:8] == FIRST_OF_SHARE


@pytest.mark.parametrize(("total", "share", "count"), [(2, 0.2, 0), (4, 0.9, 4)])
def test_share__of_too_few_images_raises(total: int, share: float, count: int) -> None:
    with raises_naming(ValueError, f"scenario.share={share}", total, count):
        Scenario(part="rest", share=share).select(torch.arange(total))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"part": "half"}, "scenario.part 'half' all share rest"),
        ({"part": "rest"}, "scenario.part=rest scenario.share"),
        ({"share": 0.2}, "scenario.share=0.2 scenario.part=share share=null"),
        *(({"part": "share", "share": share}, f"scenario.share {share!r}") for share in (0, 1, math.nan, "x", True)),
        ({"share_seed": -1}, "scenario.share_seed -1"),
        ({"reset": "always"}, "scenario.reset 'always' domain batch never"),
        ({"order": "random"}, "scenario.order 'random' shuffle file sorted dirichlet imbalance"),
        ({"order": "dirichlet"}, "scenario.order=dirichlet scenario.delta"),
        ({"order": "imbalance"}, "scenario.order=imbalance scenario.imbalance_ratio"),
        ({"order": "dirichlet", "delta": 0}, "scenario.delta 0.0001"),
        ({"order": "dirichlet", "delta": "x"}, "scenario.delta 'x'"),
        ({"order": "dirichlet", "delta": math.nan}, "scenario.delta nan"),
        ({"order": "imbalance", "imbalance_ratio": 0.5}, "scenario.imbalance_ratio 0.5"),
        ({"delta": 0.1}, "scenario.delta=0.1 scenario.order=dirichlet shuffle delta=null"),
        (
            {"order": "dirichlet", "delta": 0.1, "imbalance_ratio": 5},
            "scenario.imbalance_ratio=5 scenario.order=imbalance dirichlet",
        ),
        ({"mix": 1}, "scenario.mix 1"),
        ({"mix": True, "reset": "never", "order": "file"}, "scenario.mix=true"),
        ({"mix": True}, "scenario.reset=domain scenario.mix=true"),
        ({"rounds": 0}, "scenario.rounds 0"),
        ({"rounds": 1.5}, "scenario.rounds 1.5"),
        ({"long_tailed": 0.1}, "scenario.long_tailed 0.1"),
        ({"long_tailed": True}, "scenario.long_tailed True"),
    ],
)
def test_scenario__refuses_wrong_options(options: dict[str, Any], named: str) -> None:
    with raises_naming(ValueError, *named.split()):
        Scenario(**options)


SCENARIOS = sorted(path.stem for path in (CONFIGS / "scenario").glob("*.yaml"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario__every_yaml_has_all_options(name: str) -> None:
    config = composed(f"scenario={name}")
    made = hydra.utils.instantiate(config.scenario, _convert_="all")
    assert isinstance(made, Scenario)
    assert set(config.scenario) == {"_target_", *(field.name for field in dataclasses.fields(Scenario))}


def test_fingerprint__ignores_new_options_at_defaults() -> None:
    known = {f"scenario.{f.name}": f.default for f in dataclasses.fields(Scenario) if f.name not in ("reset", "order")}
    assert {key: value for key, value in BACKCOMPAT_DEFAULTS.items() if key.startswith("scenario.")} == known

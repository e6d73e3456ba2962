"""What a search may choose."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.errors import raises_naming
from tta.search.space import Range, Space, parse

PRESENT = {"objective.tau": 1.0, "objective.alpha": 1.0, "optimizer.lr": 0.001, "method.steps": 1, "method.low": 0.5}
TAU = "search.space.objective.tau"


def present(key: str) -> Any:
    if key not in PRESENT:
        raise ValueError(f"there is no key {key}")
    return PRESENT[key]


DEM = Space(
    (Range("objective.tau", 0.1, 2.0, 0.1), Range("objective.alpha", 0.0, 2.0, 0.1)),
    lambda at: at["objective.tau"] * at["objective.alpha"] <= 2,
)


def test_grid__of_dem_star_is_what_the_paper_searches() -> None:
    everything = [(t / 10, a / 10) for t in range(1, 21) for a in range(21)]
    assert [tuple(at.values()) for at in DEM.all_points or []] == everything
    assert [tuple(at.values()) for at in DEM.grid or []] == [(t, a) for t, a in everything if t * a <= 2]


def test_grid__empty_is_told_and_huge_is_not_looked_at() -> None:
    none = Space(DEM.ranges, lambda at: False)
    with raises_naming(ValueError, "search.space"):
        _ = none.grid
    assert Space((*DEM.ranges, Range("method.x", 0.0, 10.0, 0.1)), lambda at: False).grid is None
    assert Space((Range("optimizer.lr", 1e-4, 0.1, log=True),)).grid is None


def test_parse__reads_a_tree_of_keys() -> None:
    space = {
        "objective": {"tau": {"low": 0.1, "high": 2, "step": 0.1}},
        "optimizer": {"lr": {"low": 1e-4, "high": 0.1, "log": True}},
        "method": {"steps": {"low": 1, "high": 3}, "low": {"low": 0.0, "high": 1.0}},
    }
    assert parse(space, present) == (
        Range("objective.tau", 0.1, 2, 0.1),
        Range("optimizer.lr", 1e-4, 0.1, log=True),
        Range("method.steps", 1, 3, whole=True),
        Range("method.low", 0.0, 1.0),
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"low": 1}, [TAU, "low", "high", "step", "log"]),
        ({}, [TAU, "low", "high"]),
        (5, ["search.space.objective", "tau"]),
        ({"low": 1, "high": 2, "min": 3}, [TAU, "min"]),
        ({"low": "x", "high": 2}, [f"{TAU}.low", "'x'"]),
        ({"low": 0.0, "high": math.inf}, [f"{TAU}.high", "inf"]),
        ({"low": True, "high": 2}, [f"{TAU}.low", "True"]),
        ({"low": 2, "high": 2}, [TAU, "low=2", "high=2"]),
        ({"low": 2.0, "high": 1.0}, [TAU, "low=2.0", "high=1.0"]),
        ({"low": 0.0, "high": 1.0, "log": True}, [TAU, "log=true", "low=0.0"]),
        ({"low": 0.1, "high": 1.0, "log": True, "step": 0.1}, [TAU, "log=true", "step=0.1"]),
        ({"low": 0.1, "high": 1.0, "log": "yes"}, [f"{TAU}.log", "true", "false", "'yes'"]),
        ({"low": 0.1, "high": 1.0, "step": 0}, [TAU, "0", "0.1", "1.0"]),
        ({"low": 0.1, "high": 1.0, "step": -0.1}, [TAU, "-0.1"]),
        ({"low": 0.1, "high": 1.0, "step": 0.4}, [TAU, "0.4"]),
        ({"low": 0.1, "high": 1.0, "step": 5}, [TAU, "5"]),
    ],
)
def test_parse__what_is_no_range_is_named(options: Any, named: list[str]) -> None:
    with raises_naming(ValueError, *named):
        parse({"objective": {"tau": options}}, present)


def test_parse__empty_space_or_no_number_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    empty: list[Any] = [{}, None, 3]
    for space in empty:
        with raises_naming(ValueError, "search.space"):
            parse(space, present)
    monkeypatch.setitem(PRESENT, "objective.norm", "l1")
    with raises_naming(ValueError, "objective.norm", "'l1'"):
        parse({"objective": {"norm": {"low": 1, "high": 2}}}, present)


@given(low=st.floats(-1e3, 1e3), width=st.floats(1e-3, 1e3), share=st.floats(0, 1))
@settings(max_examples=60)
def test_clean__stays_in_range_and_changes_little(low: float, width: float, share: float) -> None:
    one = Range("k", low, low + width)
    value = low + share * width
    cleaned = one.clean(value)
    assert one.low <= cleaned <= one.high
    assert abs(cleaned - value) <= 1e-3 * max(abs(value), 1e-300)
    assert one.clean(cleaned) == cleaned


def test_holds__in_range_on_the_grid_and_allowed() -> None:
    assert DEM.holds({"objective.tau": 1.0, "objective.alpha": 2.0})
    for tau, alpha in ((1.1, 1.9), (2.1, 0.0), (0.0, 1.0), (1.05, 1.0), (None, 1.0), ("1", 1.0)):
        assert not DEM.holds({"objective.tau": tau, "objective.alpha": alpha})

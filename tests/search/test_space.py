"""What a search may choose."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tta.search.space import Range, Space, parse

PRESENT = {"objective.tau": 1.0, "objective.alpha": 1.0, "optimizer.lr": 0.001, "method.steps": 1, "method.low": 0.5}


def present(key: str) -> Any:
    if key not in PRESENT:
        raise ValueError(f"there is no key {key}")
    return PRESENT[key]


DEM = Space(
    (Range("objective.tau", 0.1, 2.0, 0.1), Range("objective.alpha", 0.0, 2.0, 0.1)),
    lambda at: at["objective.tau"] * at["objective.alpha"] <= 2,
)


def test_the_grid_of_dem_star_is_what_the_paper_searches() -> None:
    everything = [(t / 10, a / 10) for t in range(1, 21) for a in range(21)]
    assert [tuple(at.values()) for at in DEM.all_points or []] == everything
    assert [tuple(at.values()) for at in DEM.grid or []] == [(t, a) for t, a in everything if t * a <= 2]


def test_a_tree_of_keys_is_read() -> None:
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
    ("options", "message"),
    [
        ({"low": 1}, r"search.space.objective.tau needs low and high, and may have step or log; got low$"),
        ({}, r"needs low and high, and may have step or log; got nothing"),
        (5, r"search.space.objective needs low and high, and may have step or log; got tau$"),
        ({"low": 1, "high": 2, "min": 3}, r"needs low and high, .* got low, high, min"),
        ({"low": "x", "high": 2}, r"search.space.objective.tau.low must be a number, got 'x'"),
        ({"low": 0.0, "high": math.inf}, r"search.space.objective.tau.high must be a number, got inf"),
        ({"low": 0.0, "high": math.nan}, r"search.space.objective.tau.high must be a number, got nan"),
        ({"low": True, "high": 2}, r"search.space.objective.tau.low must be a number, got True"),
        ({"low": 2, "high": 2}, r"search.space.objective.tau: low=2 must be less than high=2"),
        ({"low": 2.0, "high": 1.0}, r"search.space.objective.tau: low=2.0 must be less than high=1.0"),
        ({"low": 0.0, "high": 1.0, "log": True}, r"log=true needs low > 0 and no step, got low=0.0 and step=None"),
        ({"low": 0.1, "high": 1.0, "log": True, "step": 0.1}, r"log=true needs low > 0 and no step, got low=0.1"),
        ({"low": 0.1, "high": 1.0, "log": "yes"}, r"search.space.objective.tau.log must be true or false, got 'yes'"),
        ({"low": 0.1, "high": 1.0, "step": 0}, r"steps of 0 do not lead from 0.1 to 1.0"),
        ({"low": 0.1, "high": 1.0, "step": -0.1}, r"steps of -0.1 do not lead from 0.1 to 1.0"),
        ({"low": 0.1, "high": 1.0, "step": 0.4}, r"steps of 0.4 do not lead from 0.1 to 1.0"),
        ({"low": 0.1, "high": 1.0, "step": 5}, r"steps of 5 do not lead from 0.1 to 1.0"),
    ],
)
def test_what_is_no_range_is_told(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse({"objective": {"tau": options}}, present)


def test_an_empty_space_and_a_key_that_is_no_number_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    empty: list[Any] = [{}, None, 3]
    for space in empty:
        with pytest.raises(ValueError, match=r"search.space is empty: give a range, e.g. search.space.optimizer.lr"):
            parse(space, present)
    monkeypatch.setitem(PRESENT, "objective.norm", "l1")
    with pytest.raises(ValueError, match=r"objective.norm is 'l1' here, and only numbers can be searched"):
        parse({"objective": {"norm": {"low": 1, "high": 2}}}, present)


@given(low=st.floats(-1e3, 1e3), width=st.floats(1e-3, 1e3), share=st.floats(0, 1))
def test_cleaning_stays_within_the_range_and_changes_little(low: float, width: float, share: float) -> None:
    one = Range("k", low, low + width)
    value = low + share * width
    cleaned = one.clean(value)
    assert one.low <= cleaned <= one.high
    assert abs(cleaned - value) <= 1e-3 * max(abs(value), 1e-300)
    assert one.clean(cleaned) == cleaned


def test_what_holds_is_in_the_ranges_on_the_grid_and_allowed() -> None:
    assert DEM.holds({"objective.tau": 1.0, "objective.alpha": 2.0})
    for tau, alpha in ((1.1, 1.9), (2.1, 0.0), (0.0, 1.0), (1.05, 1.0), (None, 1.0), ("1", 1.0)):
        assert not DEM.holds({"objective.tau": tau, "objective.alpha": alpha})


def test_a_grid_without_allowed_points_is_told_and_a_huge_one_is_not_looked_at() -> None:
    none = Space(DEM.ranges, lambda at: False)
    with pytest.raises(ValueError, match="no values in these ranges go together"):
        _ = none.grid
    assert Space((*DEM.ranges, Range("method.x", 0.0, 10.0, 0.1)), lambda at: False).grid is None
    assert Space((Range("optimizer.lr", 1e-4, 0.1, log=True),)).grid is None

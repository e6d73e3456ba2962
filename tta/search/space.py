"""What a search may choose: a range for each key, and which of their values go together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Values = dict[str, float]
"""A value for each key, as in ``{"objective.tau": 1.3, "objective.alpha": 0.4}``."""

OPTIONS = ("low", "high", "step", "log")
MOST_POINTS = 10_000
"""Points up to which a grid is looked at as a whole."""
DIGITS = 4
"""Significant digits of values that are on no grid: more would say nothing."""


@dataclass(frozen=True)
class Range:
    """Values that a key may take: from ``low`` to ``high``, both included.

    Args:
        key: as on the command line, e.g. ``objective.tau``.
        low: the least.
        high: the largest.
        step: between neighbours; ``None`` takes any value.
        log: draw the logarithm evenly.
        whole: whole numbers.

    Raises:
        ValueError: for a range that is none.
    """

    key: str
    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        name = f"search.space.{self.key}"
        for option in ("low", "high", "step"):
            value = getattr(self, option)
            if (option, value) != ("step", None) and not _finite(value):
                raise ValueError(f"{name}.{option} must be a number, got {value!r}")
        if not isinstance(self.log, bool):
            raise ValueError(f"{name}.log must be true or false, got {self.log!r}")
        if self.low >= self.high:
            raise ValueError(f"{name}: low={self.low} must be less than high={self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError(f"{name}: log=true needs low > 0 and no step, got low={self.low} and step={self.step}")
        if self.step is not None:
            steps = (self.high - self.low) / self.step if self.step > 0 else 0
            if round(steps) < 1 or abs(steps - round(steps)) > 1e-6:
                raise ValueError(f"{name}: steps of {self.step} do not lead from {self.low} to {self.high}")

    @property
    def points(self) -> list[float] | None:
        """All values, if they are on a grid."""
        step = 1 if self.whole and self.step is None and not self.log else self.step
        if step is None:
            return None
        return [self.clean(self.low + number * step) for number in range(round((self.high - self.low) / step) + 1)]

    @property
    def distribution(self) -> BaseDistribution:
        """The range in Optuna's words."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), self.log, int(self.step or 1))
        return FloatDistribution(self.low, self.high, self.log, self.step)

    def clean(self, value: float) -> float:
        """Write a value with as many digits as it deserves: 0.3 instead of 0.30000000000000004."""
        if self.whole:
            return int(value)
        value = float(f"{value:.10g}" if self.step is not None else f"{value:.{DIGITS}g}")
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Space:
    """Ranges, and which of their values go together.

    Args:
        ranges: one for each key.
        allowed: says whether values go together; what is not is never tried.
    """

    ranges: tuple[Range, ...]
    allowed: Callable[[Values], bool] = field(default=lambda values: True, compare=False)

    @property
    def keys(self) -> list[str]:
        """The keys, in order."""
        return [one.key for one in self.ranges]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The ranges in Optuna's words."""
        return {one.key: one.distribution for one in self.ranges}

    def clean(self, values: Mapping[str, float]) -> Values:
        """Write all values with as many digits as they deserve."""
        return {one.key: one.clean(values[one.key]) for one in self.ranges}

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether these values may be tried."""
        for one in self.ranges:
            value, points = values[one.key], one.points
            if not _finite(value) or not one.low <= value <= one.high:
                return False
            if points is not None and one.clean(value) not in points:
                return False
        return self.allowed(self.clean(values))

    @property
    def all_points(self) -> list[Values] | None:
        """Every point of the grid, allowed or not; ``None`` if there is no grid, or too large a one to look at."""
        points = [one.points for one in self.ranges]
        if any(of is None for of in points) or math.prod(len(of or ()) for of in points) > MOST_POINTS:
            return None
        return [dict(zip(self.keys, values, strict=True)) for values in itertools.product(*(of or () for of in points))]

    @cached_property
    def grid(self) -> list[Values] | None:
        """Every point that may be tried; ``None`` as above.

        Raises:
            ValueError: if there is none.
        """
        points = self.all_points
        if points is None:
            return None
        kept = [values for values in points if self.allowed(values)]
        if not kept:
            raise ValueError("search.space: no values in these ranges go together; see the objective's own limits")
        return kept

    def distance(self, one: Values, other: Values) -> float:
        """How far apart two points are, the length of each range being 1."""
        return sum(((one[of.key] - other[of.key]) / (of.high - of.low)) ** 2 for of in self.ranges)


def parse(space: Any, present: Callable[[str], Any]) -> tuple[Range, ...]:
    """Read ``search.space``: a tree of keys as the configuration's own, with a range where that has a number.

    Args:
        space: nested mappings.
        present: gives the value that a key has; raises ``ValueError`` for one that is not there.

    Raises:
        ValueError: for an unknown key, one that is no number, or a range that is none.
    """
    if not isinstance(space, Mapping) or not space:
        raise ValueError(
            "search.space is empty: give a range, e.g. search.space.optimizer.lr.low=0.0001 "
            "search.space.optimizer.lr.high=0.1 search.space.optimizer.lr.log=true"
        )
    return tuple(_range(key, options, present) for key, options in _ranges(space, ""))


def _ranges(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values()):
            yield from _ranges(value, f"{key}.")
        else:
            yield key, value


def _range(key: str, options: Any, present: Callable[[str], Any]) -> Range:
    name = f"search.space.{key}"
    if not isinstance(options, Mapping) or not {"low", "high"} <= set(options) <= set(OPTIONS):
        found = ", ".join(map(str, options)) if isinstance(options, Mapping) else repr(options)
        raise ValueError(f"{name} needs low and high, and may have step or log; got {found or 'nothing'}")
    now = present(key)
    if not _finite(now):
        raise ValueError(f"{name}: {key} is {now!r} here, and only numbers can be searched")
    numbers = [now, *(options[option] for option in ("low", "high", "step") if options.get(option) is not None)]
    return Range(key, **options, whole=all(isinstance(value, int) for value in numbers))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

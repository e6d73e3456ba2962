"""Jobs of a sweep that wait until there are enough of a kind to run in one pass."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from itertools import chain
from math import nan
from typing import TYPE_CHECKING, Any

from tta.checks import whole_number

if TYPE_CHECKING:
    from tta.replicas.lockstep import Member
    from tta.runner import Steps

AUTO = {"cpu": 4, "cuda": 16}
"""Runs in one pass with ``replicas=auto``; where their images are too many for the memory, they become fewer."""


class Pool:
    """Takes jobs, and runs those of a kind together as soon as there are enough of them."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, list[Member]] = {}
        self._ways: dict[Hashable, str] = {}
        self._same: list[Member] = []  # as others that wait: with those done, they are

    def take(self, steps: Steps[float], replicas: int | str | None, way: str) -> float:
        """Run a job, or have it wait for others.

        Returns:
            What the job returns; not a number if it waits.
        """
        from tta.replicas.lockstep import TURNS, Member, kind
        from tta.runner import alone

        if replicas in (None, 1):
            return alone(steps)
        try:
            turn = next(steps)
        except StopIteration as end:  # it was finished before, or cannot begin
            return end.value
        of = kind(turn)
        most = AUTO[turn.runner.device.type] if replicas == "auto" else int(replicas or 1)
        member, key = Member(steps, turn), (of, most, way)
        if of is None or self._ways.get(key, way) == TURNS:
            return alone(steps, turn)
        if any(member.path == other.path for others in self._waiting.values() for other in others):
            self._same.append(member)
            return nan
        self._waiting.setdefault(key, []).append(member)
        if len(self._waiting[key]) == most:
            self._run(key)
        return nan

    def flush(self) -> None:
        """Run all that wait: no others are to come."""
        for key in list(self._waiting):
            self._run(key)
        while self._same:
            self._same.pop(0).finish()

    def close(self) -> None:
        """Let go of those that wait, which have not begun."""
        for member in [*self._same, *chain(*self._waiting.values())]:
            member.steps.close()

    def _run(self, key: Any) -> None:
        from tta.replicas.lockstep import Lockstep

        members = self._waiting.pop(key)
        if len(members) == 1:
            members[0].finish()
        else:
            # What was measured to be the fastest for these is for the next of their kind too.
            self._ways[key] = Lockstep(members, self._ways.get(key, key[2])).run()


_open: list[Pool] = []


@contextmanager
def pool() -> Iterator[Pool]:
    """Have the jobs that are given to ``run`` in the block wait for others."""
    _open.append(Pool())
    try:
        yield _open[-1]
    finally:
        _open.pop().close()


def run(steps: Steps[float], replicas: int | str | None, way: str) -> float:
    """Run a job of a sweep: by itself, or, where a pool is open, together with others like it."""
    from tta.runner import alone

    return _open[-1].take(steps, replicas, way) if _open else alone(steps)


def check(replicas: Any, way: Any) -> None:
    """Make sure that the two keys of the configuration have values that there are.

    Raises:
        ValueError: if not.
    """
    from tta.replicas.lockstep import WAYS

    if replicas not in (None, "auto"):
        whole_number("replicas", replicas, 1)
    if way not in WAYS:
        raise ValueError(f"replica_pass must be one of {', '.join(WAYS)}; got {way!r}")

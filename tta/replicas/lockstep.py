"""Runs that go side by side: whenever all wait for their next batch, one pass answers them all.

Each run is the same as alone: its stream, its rows, its checkpoints and its failures are its own. Only what its method
does with a batch is done together with the others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from tta.loggers import Progress
from tta.methods.onepass import OnePass
from tta.metrics import Predictions
from tta.replicas.norms import Blocks, Interleaved, Layout
from tta.replicas.passes import Replicas, likeness, packable, share_frozen
from tta.runner import Steps, Turn, alone, in_unit_range

Answer = Tensor | Predictions | BaseException | None

LAYOUTS: dict[str, type[Layout]] = {"blocks": Blocks, "interleaved": Interleaved}
TURNS = "turns"
"""One run after another."""
FASTEST = "fastest"
WAYS = (FASTEST, TURNS, *LAYOUTS)

TRIED = {"cpu": ("blocks", TURNS), "cuda": ("interleaved", "blocks", TURNS)}
"""Ways among which the fastest is looked for. On a CPU channels last is faster, and cannot be interleaved."""
ROUNDS = 3
"""Rounds in which each way is tried; the first is not timed."""


class Member:
    """A run on its way, and what it waits for.

    Args:
        steps: the run.
        turn: its first: it is ready.
    """

    def __init__(self, steps: Steps[Any], turn: Turn) -> None:
        self.steps = steps
        self.turn: Turn | None = turn
        self.runner = turn.runner

    @property
    def method(self) -> OnePass:
        """What adapts; it is packable, and so of this kind."""
        return cast(OnePass, self.runner.method)

    @property
    def path(self) -> Path:
        """The run's directory."""
        return self.runner.directory.path

    def go_on(self, answer: Answer) -> None:
        """Tell the run what came of its turn, and hear of its next; an error is raised within the run."""
        try:
            if isinstance(answer, BaseException):
                self.turn = self.steps.throw(answer)
            else:
                self.turn = self.steps.send(answer)
        except StopIteration:
            self.turn = None

    def finish(self) -> None:
        """Take the run to its end by itself."""
        turn, self.turn = self.turn, None
        alone(self.steps, turn)


def kind(turn: Turn) -> Hashable | None:
    """What runs that can share a pass agree in; ``None`` if this one cannot share any."""
    runner, backbone = turn.runner, turn.backbone
    if backbone is None or not packable(runner.method, backbone):
        return None
    share_frozen(runner.method, backbone)  # now, as it may wait for others for long
    return id(backbone), runner.device, runner.precision, *likeness(runner.method)


class Lockstep:
    """Takes runs of one ``kind`` to their ends.

    Args:
        members: the runs; all are ready.
        way: how turns are answered: one of ``WAYS``.
    """

    def __init__(self, members: Sequence[Member], way: str = FASTEST) -> None:
        self.members = list(members)
        self.device = members[0].runner.device
        self.precision = members[0].runner.precision
        self.most = len(members)
        self.way = way
        self._trial = _Trial(TRIED[self.device.type], self._wait) if way == FASTEST else None
        self._networks: dict[tuple[str, tuple[int, ...]], Replicas] = {}
        self._checked = False

    def run(self) -> str:
        """Run all to their ends; return the way that was taken at last."""
        for member in self.members[1:]:  # one bar is enough: all go side by side
            member.runner.loggers = [one for one in member.runner.loggers if not isinstance(one, Progress)]
        try:
            for member in self.members:
                member.go_on(None)
            while waiting := self._waiting():
                if self.way == TURNS:
                    waiting[0].finish()
                else:
                    self._round(waiting)
        except BaseException as error:  # Ctrl-C: each has rows to write and a word to say
            for member in self._waiting():
                with suppress(BaseException):
                    member.go_on(error)
            raise
        return self.way

    def _waiting(self) -> list[Member]:
        return [member for member in self.members if member.turn is not None]

    def _round(self, waiting: Sequence[Member]) -> None:
        """Answer each of the runs once."""
        trial = self._trial
        if trial is None:
            self._answer_all(waiting, self.way)
            return
        way, images = trial.next(), sum(len(_images(member)) for member in waiting)
        trial.time(lambda: self._answer_all(waiting, way), images)
        if (fastest := trial.fastest()) is not None and self.way == FASTEST:
            self.way, self._trial = fastest, None

    def _answer_all(self, waiting: Sequence[Member], way: str) -> None:
        for group in _alike(waiting, self.most):
            if way == TURNS or len(group) == 1:
                self._by_themselves(group)
            else:
                self._together(group, way)

    def _by_themselves(self, group: Sequence[Member]) -> None:
        for member in group:
            assert member.turn is not None
            try:
                answer: Answer = member.turn.answer()
            except Exception as error:  # it is raised in the run that it is of
                answer = error
            member.go_on(answer)

    def _together(self, group: Sequence[Member], way: str) -> None:
        for member, size in [(member, len(_images(member))) for member in group]:
            try:
                member.method.begin(size)
            except ValueError as error:
                member.go_on(error)
        if any(member.turn is None for member in group):
            return  # the others are asked again
        with self.precision.on(self.device):
            images = [in_unit_range(_images(member), self.device) for member in group]
            try:
                replicas = self._replicas(group, way)
                if not self._checked and not replicas.agree(images):
                    raise ValueError("its layers mix the images of a batch")
                self._checked = True
                logits = replicas.forward(images)
            except Exception as error:  # before any method has learnt
                self._give_way(error)
                return
            wrong = replicas.learn(logits)
        taken = Predictions.of(torch.stack([of_one.detach() for of_one in logits]))
        for member, failure, *of_one in zip(group, wrong, *taken, strict=True):
            member.go_on(failure or Predictions(*of_one))

    def _replicas(self, group: Sequence[Member], way: str) -> Replicas:
        """Make the joint network of these runs, or take that of their last turn."""
        who = tuple(id(member) for member in group)
        if (way, who) not in self._networks:
            for key in [key for key in self._networks if key[1] != who and set(key[1]) & set(who)]:
                del self._networks[key]  # others have left it, or joined
            self._networks[way, who] = Replicas([member.method for member in group], LAYOUTS[way])
        return self._networks[way, who]

    def _give_way(self, error: Exception) -> None:
        """After a pass that was too much, make smaller ones; after one that cannot be, none."""
        self._networks.clear()
        if isinstance(error, torch.OutOfMemoryError) and self.most > 2:
            self.most = (self.most + 1) // 2
            torch.cuda.empty_cache()
            print(f"tta: no memory for so many runs in one pass: {self.most} at once", file=sys.stderr)
            return
        self.way, self._trial = TURNS, None
        print(f"tta: runs one after another, not in one pass ({error})", file=sys.stderr)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _Trial:
    """Finds the fastest of several ways, in rounds that count as any others.

    Args:
        ways: to choose from.
        wait: for the device.
    """

    def __init__(self, ways: Sequence[str], wait: Callable[[], None]) -> None:
        self._seconds: dict[str, list[float]] = {way: [] for way in ways}
        self._wait = wait

    def next(self) -> str:
        """The way that was tried the least."""
        return min(self._seconds, key=lambda way: len(self._seconds[way]))

    def time(self, answer: Callable[[], None], images: int) -> None:
        """Try it, on so many images."""
        way = self.next()
        self._wait()
        began = time.perf_counter()
        answer()
        self._wait()
        self._seconds[way].append((time.perf_counter() - began) / images)

    def fastest(self) -> str | None:
        """The fastest, if all were tried often enough."""
        if min(map(len, self._seconds.values())) < ROUNDS:
            return None
        return min(self._seconds, key=lambda way: min(self._seconds[way][1:]))


def _images(member: Member) -> Tensor:
    assert member.turn is not None
    assert member.turn.images is not None
    return member.turn.images


def _alike(members: Sequence[Member], most: int) -> Iterator[list[Member]]:
    """Runs whose batches have the same shape, so many at once at most."""
    shapes: dict[torch.Size, list[Member]] = {}
    for member in members:
        shapes.setdefault(_images(member).shape, []).append(member)
    for group in shapes.values():
        for first in range(0, len(group), most):
            yield group[first : first + most]

"""A search on disk: its trials in SQLite, shared by whatever processes work on it."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import optuna
from filelock import FileLock, Timeout
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from tta.search.sampler import TAKEN, AllowedTPE, BehindOthers
from tta.search.space import Space, Values

NAME = "search"
CONFIGURATION = "configuration"
DIVERGED = "diverged"
POLL = 0.2
"""Seconds between two looks at what other processes do."""
PATIENCE = 120
"""Seconds to wait for another process's access to the file."""


@dataclass(frozen=True)
class Done:
    """A finished trial."""

    number: int  # among those that count, from 0, in the order in which they began
    values: Values
    accuracy: float | None  # over the whole share, in [0, 1]; None if it was given up
    seen: int  # domains, but for the last
    so_far: float | None  # accuracy when it was given up
    diverged: bool = False
    name: int = field(default=-1, compare=False)  # never another's; the numbers move up when a killed one's is taken


class Study:
    """Trials of one configuration, on disk.

    Several processes may work on the same one at a time: each trial is taken by one of them, and the number of trials
    is that of all together. A trial whose process was killed is taken again.

    Args:
        folder: of the study; made if it is not there.
        configuration: all that determines what a trial gives, of plain values.
        space: what may be tried.
        seed: of the draws.
        trials: how many are wanted in all, finished or given up.
        first: values of the first trial; ``None`` draws them too.
        prune: share of the other trials that a trial must not be behind, see ``BehindOthers``.

    Raises:
        ValueError: if another configuration's study is there.
        OSError: if the file is broken, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        configuration: Mapping[str, Any],
        space: Space,
        seed: int,
        trials: int,
        first: Values | None = None,
        prune: float = 0.5,
    ) -> None:
        self.folder = folder
        self.space = space
        points = space.grid
        self.trials = trials if points is None else min(trials, len(points))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "locks").mkdir(exist_ok=True)
        except OSError as error:
            raise OSError(f"search.dir: {folder} cannot be written ({error}); choose another") from error
        self._lock = FileLock(folder / "locks" / "study.lock")
        # Without a pool no connection outlives its use, wherever the study ends.
        engine = {"connect_args": {"timeout": PATIENCE}, "poolclass": NullPool}
        with self._lock, self._told():
            self._study = optuna.create_study(
                storage=RDBStorage(f"sqlite:///{self.file}", engine_kwargs=engine),
                study_name=NAME,
                sampler=AllowedTPE(space, seed, first),
                pruner=BehindOthers(prune),
                direction="maximize",
                load_if_exists=True,
            )
            there = self._study.user_attrs.get(CONFIGURATION)
            if there is None:
                self._study.set_user_attr(CONFIGURATION, configuration)
        if there is not None and there != json.loads(json.dumps(configuration)):
            raise ValueError(
                f"{folder} holds a search of another configuration: {_differences(there, configuration)}. Choose "
                "another search.dir, or delete that folder"
            )

    @property
    def file(self) -> Path:
        """Where the trials are."""
        return self.folder / "study.db"

    def lock(self, name: str) -> FileLock:
        """Give a lock that the processes of this study share."""
        return FileLock(self.folder / "locks" / f"{name}.lock")

    def take(self) -> Trial | None:
        """Begin a trial; ``None`` if there are enough, and none is going on in another process.

        While others' are going on it waits, as they may be killed.
        """
        while True:
            with self._lock, self._told():
                going_on = self._going_on()
                if len(self._trials(*TAKEN)) < self.trials:
                    begun = self._study.ask(self.space.distributions)
                    lock = self.lock(f"trial-{begun.number}")
                    lock.acquire()
                    return Trial(self, begun, lock)
            if not going_on:
                return None
            time.sleep(POLL)

    def done(self) -> list[Done]:
        """List the finished trials, in the order in which they began."""
        with self._told():
            taken = self._trials(*TAKEN)
        return [_done(number, trial) for number, trial in enumerate(taken) if trial.state != TrialState.RUNNING]

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states)

    def _going_on(self) -> bool:
        """Say whether other processes are at work; what a killed one began is marked as failed."""
        going_on = False
        for trial in self._trials(TrialState.RUNNING):
            try:
                with self.lock(f"trial-{trial.number}").acquire(timeout=0):
                    # It may have ended since we looked.
                    if trial.number in (one.number for one in self._trials(TrialState.RUNNING)):
                        self._study.tell(trial.number, state=TrialState.FAIL)
            except Timeout:
                going_on = True
        return going_on

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Tell what a broken file means."""
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error, optuna.exceptions.OptunaError, RuntimeError) as error:
            if isinstance(error, optuna.TrialPruned):
                raise
            cause = str(error.__cause__ or error).strip().partition("\n")[0]
            raise OSError(
                f"{self.file} cannot be used ({cause}): if it is broken, delete it to begin anew, or choose another "
                "search.dir"
            ) from error


class Trial:
    """A trial that this process has taken; use it as a context manager.

    Left without a result, by an error or Ctrl-C, it counts for nothing.
    """

    def __init__(self, study: Study, trial: optuna.Trial, lock: FileLock) -> None:
        self._study = study
        self._trial = trial
        self._lock = lock
        self._state: TrialState | None = None
        self.values: Values = dict(trial.params)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._state is None:
                self._tell(TrialState.FAIL)
        finally:
            self._lock.release()

    def report(self, seen: int, accuracy: float) -> bool:
        """Say how it goes: the accuracy after so many domains. Returns whether to give the trial up."""
        with self._study._told():
            self._trial.report(accuracy, seen)
            return self._trial.should_prune()

    def finish(self, accuracy: float) -> None:
        """End with the accuracy over the whole share, in [0, 1]."""
        self._tell(TrialState.COMPLETE, accuracy)

    def give_up(self, diverged: bool = False) -> None:
        """End without it."""
        if diverged:
            self._trial.set_user_attr(DIVERGED, True)
        self._tell(TrialState.PRUNED)

    def _tell(self, state: TrialState, accuracy: float | None = None) -> None:
        with self._study._told():
            self._study._study.tell(self._trial, accuracy, state)
        self._state = state


def _done(number: int, trial: FrozenTrial) -> Done:
    complete = trial.state == TrialState.COMPLETE
    seen = trial.last_step or 0
    return Done(
        number,
        dict(trial.params),
        trial.value if complete else None,
        seen,
        trial.intermediate_values.get(seen),
        bool(trial.user_attrs.get(DIVERGED)),
        trial.number,
    )


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    one, other = _flat(there), _flat(json.loads(json.dumps(here)))
    keys = sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
    said = [f"{key} is {_word(one, key)} there and {_word(other, key)} here" for key in keys]
    return "; ".join(said[:5]) + (f"; and {len(said) - 5} more" if len(said) > 5 else "")


def _word(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "not given"


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return flat

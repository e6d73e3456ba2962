"""Sweeps: launch the jobs, wait for those that other processes run, and show how each ended."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.utils import JobReturn

from tta.runs.directory import RunDirectory
from tta.runs.jobs import JobStatus, SweepState
from tta.runs.lock import is_locked

POLL = 1.0
"""Seconds between two looks at runs that others work on."""

ALL_SHOWN = 50
"""Jobs that a table shows one by one; of more, it shows those that did not get done."""

DONE = ("done", "skipped")
STYLES = {"done": "green", "skipped": "dim", "locked": "yellow", "not started": "yellow"}


@dataclass
class Job:
    """A combination of the sweep, under the numbers that it has been launched with."""

    overrides: Sequence[str]
    numbers: list[int] = field(default_factory=list)


class SweepError(Exception):
    """The sweep has come to its end, but not all of its jobs."""


Launch = Callable[[Sequence[Sequence[str]], int], Sequence[JobReturn]]


class Sweep:
    """The jobs of a sweep on their way through a launcher.

    Args:
        record: the sweep's directory.
        launch: runs jobs, given as lists of overrides, under numbers from the one given on.
    """

    def __init__(self, record: SweepState, launch: Launch) -> None:
        self.record = record
        self.jobs: list[Job] = []
        self.trouble = ""
        self.interrupted = False
        self._launch = launch
        self._launched = 0

    def launch(self, overrides: Iterable[Sequence[str]]) -> None:
        """Run these jobs. Those whose process died, or never came, get a second chance."""
        jobs = [Job(list(words)) for words in overrides]
        self.jobs.extend(jobs)
        self._run(jobs)
        if lost := [job for job in jobs if self.outcome(job).state in ("running", "not started")]:
            print(f"{len(lost)} job(s) were lost{self._because()}; once more", file=sys.stderr)
            self._run(lost)

    def finish(self) -> None:
        """Wait for the runs that other processes work on, and take over those that they leave."""
        told: set[str] = set()
        while locked := [job for job in self.jobs if self.outcome(job).state == "locked"]:
            if left := [job for job in locked if self._left_by_others(job)]:
                self._run(left)
                continue
            for job in locked:
                if (path := self.outcome(job).path) not in told:
                    print(f"waiting for {Path(path).name}, {self.outcome(job).text}; Ctrl-C ends it", file=sys.stderr)
                    told.add(path)
            time.sleep(POLL)

    def outcome(self, job: Job) -> JobStatus:
        """What is known of a job."""
        return self.record.read(job.numbers[-1]) or JobStatus("not started")

    def show(self) -> None:
        """Print what became of the jobs."""
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        outcomes = [self.outcome(job) for job in self.jobs]
        many = len(self.jobs) > ALL_SHOWN
        table = Table("", *self._keys(), "state", "accuracy or reason", box=box.SIMPLE)
        for number, (job, outcome) in enumerate(zip(self.jobs, outcomes, strict=True)):
            if not (many and outcome.state in DONE):
                shown = self._shown(outcome)
                table.add_row(str(number), *self._values(job), Text(shown, STYLES.get(shown, "red")), outcome.text)
        if table.row_count:
            # What is not a terminal is a file or a pipe: nothing is to be folded there.
            Console(width=None if sys.stdout.isatty() else 200).print(table)
        counts = Counter(self._shown(outcome) for outcome in outcomes)
        print(f"{len(self.jobs)} job(s): " + ", ".join(f"{n} {state}" for state, n in counts.most_common()))

    def check(self) -> None:
        """Raise ``SweepError`` unless all jobs are done."""
        missing = [job for job in self.jobs if self.outcome(job).state not in DONE]
        if missing:
            raise SweepError(
                f"{len(missing)} of {len(self.jobs)} jobs did not get done{self._because()}: the same command runs "
                "them again, and no others"
            )

    def _run(self, jobs: Sequence[Job]) -> None:
        for number, job in enumerate(jobs, self._launched):
            job.numbers.append(number)
        first, self._launched = self._launched, self._launched + len(jobs)
        try:
            for returned in self._launch([job.overrides for job in jobs], first):
                _ = returned.return_value  # raises what a job could not tell itself
        except Exception as error:  # of the launcher: jobs tell their own in the record
            self.trouble = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"

    def _because(self) -> str:
        return f" ({self.trouble})" if self.trouble else ""

    def _left_by_others(self, job: Job) -> bool:
        path = Path(self.outcome(job).path)
        return RunDirectory(path).finished or not is_locked(path)

    def _shown(self, outcome: JobStatus) -> str:
        if outcome.state == "running":
            return "interrupted" if self.interrupted else "lost"
        return outcome.state

    def _keys(self) -> list[str]:
        """Keys whose values tell the jobs apart."""
        values: dict[str, set[str]] = {}
        for job in self.jobs:
            for word in job.overrides:
                key, _, value = word.partition("=")
                values.setdefault(key, set()).add(value)
        return [key for key, found in values.items() if len(found) > 1]

    def _values(self, job: Job) -> list[str]:
        given = dict(word.partition("=")[::2] for word in job.overrides)
        return [given.get(key, "") for key in self._keys()]


@contextmanager
def run_sweep(folder: Path, launch: Launch) -> Iterator[Sweep]:
    """Give a sweep to launch jobs with in the block; then finish it and print its table, also when interrupted.

    Args:
        folder: the sweep's directory.
        launch: see ``Sweep``.

    Raises:
        SweepError: if not all jobs are done.
    """
    record = SweepState(folder)
    record.start(sys.argv)
    sweep = Sweep(record, launch)
    try:
        yield sweep
        sweep.finish()
    except KeyboardInterrupt:
        sweep.interrupted = True
        raise
    finally:
        if sweep.jobs:
            sweep.show()
    sweep.check()

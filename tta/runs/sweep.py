"""Sweeps: what became of each job, whichever launcher ran it, and where.

Jobs tell it in files, in the sweep's directory: a process that is killed, or on another machine, hands nothing back.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn

from tta.runs.directory import RunDirectory
from tta.runs.lock import is_locked
from tta.utils.paths import atomic_file
from tta.utils.urls import redact

POLL = 1.0
"""Seconds between two looks at runs that others work on."""

ALL_SHOWN = 50
"""Jobs that a table shows one by one; of more, it shows those that did not get done."""

DONE = ("done", "skipped")
STYLES = {"done": "green", "skipped": "dim", "locked": "yellow", "not started": "yellow"}


@dataclass
class JobStatus:
    """What became of a run.

    Args:
        state: ``done``, ``skipped`` (finished before), ``locked`` (another process works on it), ``failed``, or
            ``running``, when nothing was heard of it since.
        text: accuracy or reason, for a person.
        path: the run's directory, where it is known.
        accuracy: in [0, 1], or not a number.
    """

    state: str
    text: str = ""
    path: str = ""
    accuracy: float = math.nan


@dataclass
class Job:
    """A combination of the sweep, under the numbers that it has been launched with."""

    overrides: Sequence[str]
    numbers: list[int] = field(default_factory=list)


class SweepError(Exception):
    """The sweep has come to its end, but not all of its jobs."""


class SweepState:
    """A sweep's directory: the command it came from, and the outcome of each launched job.

    Args:
        folder: the directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def path(self) -> Path:
        """The file whose presence means that outcomes are wanted."""
        return self.folder / "sweep.json"

    def start(self, command: Sequence[str]) -> None:
        """Begin the record of a sweep."""
        for old in self.folder.glob("job-*.json"):
            old.unlink()
        self._write(self.path, {"command": [redact(word) for word in command]})

    @property
    def command(self) -> list[str]:
        """What the user typed; jobs on other machines were called otherwise."""
        return json.loads(self.path.read_text())["command"]

    def write(self, number: int, outcome: JobStatus) -> None:
        """Keep what became of a job."""
        self._write(self._job(number), asdict(outcome))

    def read(self, number: int) -> JobStatus | None:
        """Outcome of a job, if it has begun."""
        try:
            return JobStatus(**json.loads(self._job(number).read_text()))
        except FileNotFoundError:
            return None

    def _job(self, number: int) -> Path:
        return self.folder / f"job-{number}.json"

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        with atomic_file(path) as file:
            file.write_text(json.dumps(content) + "\n")


def run_job(
    record: SweepState, number: int, run: Callable[[], JobStatus], message: Callable[[Exception], str]
) -> float:
    """Run a job of a sweep; whatever happens to it is told, and does not stop the others.

    Args:
        record: of the sweep.
        number: of the job.
        run: runs the job.
        message: what to tell a user of an error; "" if it is none that a user can cause.

    Returns:
        Accuracy, for sweepers that look for it; not a number where there is none.
    """
    record.write(number, JobStatus("running", f"process {os.getpid()}"))
    try:
        outcome = run()
    except Exception as error:  # whatever it is, the other jobs go on
        told = message(error)
        if not told:
            traceback.print_exc()
            told = redact(f"{type(error).__name__}: {error}")
        print(f"tta: error: {told}", file=sys.stderr)
        outcome = JobStatus("failed", told)
    record.write(number, outcome)
    return outcome.accuracy


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

"""A job of a sweep, and how it ended: written to a file, as a process that is killed returns nothing."""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tta.utils.paths import atomic_file
from tta.utils.urls import redact


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

"""The directory of a run: written so that an unfinished run never looks finished."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from tta.runs.lock import RunLockedError, run_lock
from tta.utils.paths import atomic_file

DOMAIN_KEY = ("domain", "severity", "visit")
"""Where a row belongs: a domain comes once or, as the scenario has it, several times, each a visit."""

BATCH_COLUMNS = (
    "step",
    *DOMAIN_KEY,
    "n",
    "batch_accuracy",
    "domain_accuracy",
    "online_accuracy",
    "entropy",
    "loss",
    "used",
    "seconds",
)
CLASS_COLUMNS = (*DOMAIN_KEY, "class", "labels", "predictions", "correct")
DOMAIN_COLUMNS = (*DOMAIN_KEY, "n", "accuracy", "calibration_error", "entropy", "skipped", "seconds")
COLUMNS = {"batches": BATCH_COLUMNS, "domains": DOMAIN_COLUMNS, "classes": CLASS_COLUMNS}


class RunDirectory:
    """Files of one run, the last of which means that it is complete.

    ``config.yaml``; ``batches.csv``, ``domains.csv`` and ``classes.csv``, a row for each batch, domain, and class in a
    domain; ``summary.json``. Rows reach the disk as they are written. One process at a time writes it
    (``tta.runs.lock``).

    Args:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def summary_path(self) -> Path:
        """The file whose presence means that the run is complete."""
        return self.path / "summary.json"

    @property
    def checkpoint_path(self) -> Path:
        """The file that an unfinished run is continued from."""
        return self.path / "checkpoint"

    @property
    def finished(self) -> bool:
        """Whether a complete run is there."""
        return self.summary_path.is_file()

    @contextmanager
    def open(self, config: str, resume_sizes: Mapping[str, int] | None = None) -> Iterator[Self]:
        """Make the directory and open its tables for ``write``; close them when the block ends.

        Args:
            config: the text of ``config.yaml``.
            resume_sizes: to resume a run, the bytes to keep of each table, as ``sizes`` gave them: the rest is cut off.
                ``None`` removes the files of an earlier run.

        Raises:
            OSError: if the directory cannot be written.
        """
        with ExitStack() as tables:  # closes each, also when the disk is too full for what another has yet to write
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self.summary_path.unlink(missing_ok=True)  # first: from here on the directory is unfinished
                self._remove_temporary_files()
                if resume_sizes is None:
                    self.checkpoint_path.unlink(missing_ok=True)
                paths = {table: self._table_path(table) for table in COLUMNS}
                mode = "w" if resume_sizes is None else "r+"
                self._files = {t: tables.enter_context(p.open(mode, newline="")) for t, p in paths.items()}
                with atomic_file(self.path / "config.yaml") as path:
                    path.write_text(config)
            except OSError as error:
                raise OSError(
                    f"runs_dir: {self.path} cannot be written ({error}); choose another with runs_dir=<folder>"
                ) from error
            self._writers = {t: csv.DictWriter(f, COLUMNS[t], lineterminator="\n") for t, f in self._files.items()}
            for table, file in self._files.items():
                if resume_sizes is None:
                    self._writers[table].writeheader()
                else:
                    file.truncate(resume_sizes[table])
                    file.seek(0, os.SEEK_END)
            yield self

    def write(self, table: str, row: Mapping[str, Any]) -> None:
        """Add a row to ``<table>.csv``; ``table`` is one of ``batches``, ``domains`` and ``classes``."""
        self._writers[table].writerow(
            {key: f"{value:.6f}" if isinstance(value, float) else value for key, value in row.items()}
        )

    def flush(self) -> None:
        """Hand the rows written so far to the system, so that a killed process does not lose them."""
        for file in self._files.values():
            file.flush()

    def sizes(self) -> dict[str, int]:
        """Bytes of each table so far."""
        self.flush()
        return {table: self._table_path(table).stat().st_size for table in COLUMNS}

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``: the run is complete."""
        self.flush()
        with atomic_file(self.summary_path) as file:
            file.write_text(json.dumps(summary, indent=1) + "\n")
        self.checkpoint_path.unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Remove what a process left that was killed when all was written but not all cleared away."""
        if not (self.checkpoint_path.exists() or self._temporary_files()):
            return
        with suppress(RunLockedError, OSError), run_lock(self.path):
            if self.finished:
                self._remove_temporary_files()
                self.checkpoint_path.unlink(missing_ok=True)

    def _table_path(self, table: str) -> Path:
        return self.path / f"{table}.csv"

    def _temporary_files(self) -> list[Path]:
        """List what ``atomic_file`` leaves when a process is killed."""
        return [file for file in self.path.glob(".*-*") if file.is_file()]

    def _remove_temporary_files(self) -> None:
        for file in self._temporary_files():
            file.unlink(missing_ok=True)

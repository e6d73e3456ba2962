"""A run's directory: found by what determines its result, written so that an unfinished run never looks finished."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from tta.runs.lock import RunLockedError, run_lock
from tta.utils.paths import atomic_file
from tta.utils.urls import redact

RESULT_FORMAT = 1
"""Raised when the meaning of a result changes, so that older results are not taken for new ones."""

PLACE_COLUMNS = ("domain", "severity", "visit")
"""Where a row belongs: a domain comes once or, as the scenario has it, several times, each a visit."""

BATCH_COLUMNS = (
    "step",
    *PLACE_COLUMNS,
    "n",
    "batch_accuracy",
    "domain_accuracy",
    "online_accuracy",
    "entropy",
    "loss",
    "used",
    "seconds",
)
CLASS_COLUMNS = (*PLACE_COLUMNS, "class", "labels", "predictions", "correct")
DOMAIN_COLUMNS = (*PLACE_COLUMNS, "n", "accuracy", "calibration_error", "entropy", "skipped", "seconds")
COLUMNS = {"batches": BATCH_COLUMNS, "domains": DOMAIN_COLUMNS, "classes": CLASS_COLUMNS}

PACKAGES = ("tta", "torch", "torchvision", "timm", "hydra-core", "omegaconf", "numpy", "torchmetrics", "robustbench")


HASHED_GROUPS = ("model", "stream", "scenario", "method", "seed", "precision")
"""Parts of a configuration that determine a result; objective and optimizer are within the method that uses them."""

UNHASHED_KEYS = (
    "stream.root",
    "stream.source",
    "stream.workers",
    "stream.download",
    "stream.cache",
    "model.checkpoint",
    "model.model_dir",
    "method.fisher.root",
)
"""Keys within them that only say where things are and how they are read: what is there has a name of its own."""

NEUTRAL = {
    "scenario.delta": None,
    "scenario.imbalance_ratio": None,
    "scenario.mix": False,
    "scenario.rounds": 1,
    "scenario.long_tailed": None,
    "stream.classes": None,
    "stream.subset": None,
    "stream.on_device": False,
    "scenario.part": "all",
    "scenario.share": None,
    "scenario.share_seed": 0,
}
"""Keys younger than results, at the value that those were made with: they count for nothing, so that such are found."""


def determinants(config: Mapping[str, Any]) -> dict[str, Any]:
    """Take out of a configuration what determines a result, apart from the content of files."""
    return {part: _without(config[part], part) for part in HASHED_GROUPS}


def _without(node: Any, name: str) -> Any:
    if not isinstance(node, Mapping):
        return node
    keys = {key: f"{name}.{key}" for key in node}
    return {key: _without(node[key], whole) for key, whole in keys.items() if not _counts_for_nothing(whole, node[key])}


def _counts_for_nothing(key: str, value: Any) -> bool:
    return key in UNHASHED_KEYS or (key in NEUTRAL and NEUTRAL[key] == value)


def fingerprint(config: Mapping[str, Any], weights: str, *data: str) -> str:
    """Name what determines a result, in 10 hexadecimal digits.

    Args:
        config: of the run, as plain containers.
        weights: names the weights, whatever file they came from (``Backbone.weights_id``).
        data: name the images, wherever they are (``Stream.digest``, ``Method.data``); empty ones count for nothing.
    """
    parts = {"format": RESULT_FORMAT, "weights": weights, "data": " ".join(filter(None, data)), **determinants(config)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


class RunDirectory:
    """Files of one run, the last of which means that it is complete.

    ``config.yaml``; ``batches.csv``, ``domains.csv`` and ``classes.csv``, a row for each batch, domain, and class in a
    domain; ``summary.json``.

    Rows reach the disk as they are written. Use it as a context manager, by one process at a time (``tta.runs.lock``).

    Args:
        path: the directory; made when entered, and cleared of an earlier run's files.
        resume_sizes: bytes of each table to keep, as ``sizes`` gave them, when a run is resumed; the rest is cut off.

    Raises:
        OSError: if the directory cannot be written.
    """

    def __init__(self, path: Path, resume_sizes: Mapping[str, int] | None = None) -> None:
        self.path = path
        self.resume_sizes = resume_sizes

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

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.summary_path.unlink(missing_ok=True)  # first: from here on the directory is unfinished
            self._remove_temporary_files()
            if self.resume_sizes is None:
                self.checkpoint_path.unlink(missing_ok=True)  # it is of rows that go now
            self._files = {name: self._open(name) for name in COLUMNS}
        except OSError as error:
            raise OSError(
                f"runs_dir: {self.path} cannot be written ({error}); choose another with runs_dir=<folder>"
            ) from error
        self._writers = {
            name: csv.DictWriter(file, COLUMNS[name], lineterminator="\n") for name, file in self._files.items()
        }
        if self.resume_sizes is None:
            for writer in self._writers.values():
                writer.writeheader()
        return self

    def _open(self, table: str) -> TextIO:
        if self.resume_sizes is None:
            return self._path_of(table).open("w", newline="")
        file = self._path_of(table).open("r+", newline="")
        file.truncate(self.resume_sizes[table])
        file.seek(0, os.SEEK_END)
        return file

    def _path_of(self, table: str) -> Path:
        return self.path / f"{table}.csv"

    def _remove_temporary_files(self) -> None:
        """Remove what ``atomic_file`` leaves when a process is killed."""
        for file in self._temporary_files():
            file.unlink(missing_ok=True)

    def _temporary_files(self) -> list[Path]:
        return [file for file in self.path.glob(".*-*") if file.is_file()]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as closing:  # each, also when the disk is too full for what another has yet to write
            for file in self._files.values():
                closing.callback(file.close)

    def write_config(self, text: str) -> None:
        """Keep the composed configuration."""
        with atomic_file(self.path / "config.yaml") as file:
            file.write_text(text)

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
        return {table: self._path_of(table).stat().st_size for table in COLUMNS}

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


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """Where a result comes from: time, command, commit, versions, machine."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [redact(word) for word in command],
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
    }


def _commit() -> str | None:
    """Commit of this package's checkout, with ``+changes`` where files differ from it; ``None`` for a wheel."""
    folder = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ("git", "-C", str(folder), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(folder / "__init__.py"))  # a checkout of ours, not one around a venv
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None

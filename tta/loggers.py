"""Loggers: who is told about a run while it goes on. The files of the run itself are not their affair."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tta.utils.paths import atomic_file
from tta.utils.urls import redact


class Logger(Protocol):
    """Hears of a run: ``start``, ``batch`` and ``domain`` rows, ``finish``; ``close`` comes last, whatever happened."""

    def start(self, name: str, config: Mapping[str, Any], directory: Path, images: int, done: int = 0) -> None:
        """Begin a run of so many images, of which ``done`` were predicted before the run was cut off."""

    def batch(self, row: Mapping[str, Any]) -> None:
        """Hear of a batch: a row of ``batches.csv``."""

    def domain(self, row: Mapping[str, Any]) -> None:
        """Hear of a finished domain: a row of ``domains.csv``."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Hear that the run is complete."""

    def close(self) -> None:
        """Release everything."""


class Progress:
    """A live bar with online accuracy, images per second and time left; silent when not in a terminal."""

    def start(self, name: str, config: Mapping[str, Any], directory: Path, images: int, done: int = 0) -> None:
        """Show the bar."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self._began = time.perf_counter()
        self._images = 0
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=15),
            MofNCompleteColumn(),
            TextColumn("{task.fields[accuracy]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        # The figures come first where the terminal is too narrow for the name as well.
        self._prefix = f"{name} " if console.width >= len(name) + 80 else ""
        self._task = self._bar.add_task(name, total=images, completed=done, accuracy="", rate="")
        self._bar.start()

    def batch(self, row: Mapping[str, Any]) -> None:
        """Move the bar."""
        self._images += row["n"]
        self._bar.update(
            self._task,
            advance=row["n"],
            description=f"{self._prefix}{row['domain']}",
            accuracy=f"{100 * row['online_accuracy']:.1f} %",
            rate=f"{self._images / (time.perf_counter() - self._began):.0f} images/s",
        )

    def domain(self, row: Mapping[str, Any]) -> None:
        """Nothing: the bar shows the run."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Nothing: the caller prints the result."""

    def close(self) -> None:
        """Take the bar away."""
        if hasattr(self, "_bar"):
            self._bar.stop()


class Wandb:
    """Weights & Biases: every row, the configuration and the summary.

    A failure of the service never stops a run that has begun: it is told once, and the run goes on without it. Rows are
    in the run's directory before wandb hears of them, and so is the summary.

    Args:
        project: name of the project.
        mode: ``online``, ``offline`` (no account needed; ``wandb sync`` uploads later) or ``disabled``.
        entity: user or team; by default the account's own.
        tags: of the run.

    Raises:
        ValueError: for another mode.
    """

    def __init__(
        self, project: str = "tta", mode: str = "online", entity: str | None = None, tags: list[str] | None = None
    ) -> None:
        if mode not in ("online", "offline", "disabled"):
            raise ValueError(f"logger.wandb.mode must be online, offline or disabled, got {mode!r}")
        self.project = project
        self.mode = mode
        self.entity = entity
        self.tags = tags
        self._run: Any = None
        self._failed = False

    def start(self, name: str, config: Mapping[str, Any], directory: Path, images: int, done: int = 0) -> None:
        """Begin a wandb run whose files are in the run's directory, or go on with it where that is continued.

        Raises:
            ValueError: if wandb cannot begin, as without an account.
        """
        import wandb

        known = directory / "wandb" / "id"
        continued = done > 0 and known.is_file()
        identity = known.read_text() if continued else secrets.token_hex(4)
        with atomic_file(known) as file:
            file.write_text(identity)
        self._failed = False
        try:
            self._run = wandb.init(
                project=self.project,
                entity=self.entity,
                tags=self.tags,
                name=name,
                config=dict(config),
                dir=str(directory),
                mode=self.mode,  # type: ignore[arg-type]
                id=identity,
                # wandb knows no other way to go on offline; `wandb sync` joins files of the same run.
                resume="allow" if continued and self.mode == "online" else None,
                reinit="create_new",
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.errors.Error as error:
            raise ValueError(
                f"logger=wandb could not start ({error}); log in with `wandb login`, or use logger.wandb.mode=offline"
            ) from error

    def batch(self, row: Mapping[str, Any]) -> None:
        """Log a row under ``batch/``."""
        values = {f"batch/{key}": value for key, value in row.items() if value is not None}
        self._ask(lambda run: run.log(values, step=row["step"]))

    def domain(self, row: Mapping[str, Any]) -> None:
        """Log the domain's result under ``domain/``."""
        visit = f"-visit{row['visit']}" if row["visit"] > 1 else ""
        key = f"domain/{row['domain']}-{row['severity']}{visit}/accuracy"
        self._ask(lambda run: run.summary.update({key: row["accuracy"]}))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Put the run's figures into the wandb summary."""
        figures = {key: summary[key] for key in ("accuracy", "online_accuracy", "images", "seconds")}
        self._ask(lambda run: run.summary.update(figures))

    def close(self) -> None:
        """End the wandb run."""
        if self._run is not None:
            self._ask(lambda run: run.finish())
            self._run = None

    def _ask(self, what: Callable[[Any], object]) -> None:
        """Have wandb do something; once it has failed, nothing more."""
        if self._failed:
            return
        try:
            what(self._run)
        except Exception as error:  # of wandb, its service, the network, a full disk
            self._failed = True
            print(
                f"logger.wandb: {redact(f'{type(error).__name__}: {error}')}; the run goes on without it",
                file=sys.stderr,
            )

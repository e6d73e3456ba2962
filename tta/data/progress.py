"""What a person sees while bytes move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Moved = Callable[[int, int | None], None]
"""Called with the bytes that are done so far, and those there are in all (``None``: not known)."""


def in_bytes(size: float) -> str:
    """Write a number of bytes for a person, as in ``2.9 GB`` (1 GB is 10⁹ bytes)."""
    from rich.filesize import decimal

    return decimal(round(size))


@contextmanager
def bar(what: str) -> Iterator[Moved]:
    """Show a bar with speed and time left, in 80 columns; nothing where standard error is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)

        def moved(done: int, total: int | None) -> None:
            if not progress.tasks[0].completed:
                progress.reset(task, completed=done, total=total)  # so that the speed is not of what was there before
            progress.update(task, completed=done, total=total)

        yield moved

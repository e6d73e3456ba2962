"""Claims: one process at a time works on a run, however many commands are given the same ``runs_dir``.

A claim is a lock on a file in ``<runs_dir>/.claims``; the system gives it free when its holder ends, however it does.
Several machines that share ``runs_dir`` see each other's claims if its file system does locks between machines (NFS,
Lustre mounted with ``flock``, GPFS, CephFS).
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from tta.utils.paths import atomic_file


class RunLockedError(Exception):
    """Another process works on the run.

    Args:
        path: the run's directory.
        owner: who, in words.
    """

    def __init__(self, path: Path, owner: str) -> None:
        super().__init__(f"{path.name} is being run by {owner}")
        self.path = path
        self.owner = owner


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold the run of this directory within the block.

    Raises:
        RunLockedError: if another process holds it; says which.
        OSError: if the file system refuses.
    """
    place = _place(run)
    lock = FileLock(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RunLockedError(run, _owner(place)) from None
    except (OSError, NotImplementedError) as error:
        raise OSError(
            f"runs_dir: {run.parent} cannot be written or locked ({error}); choose another with runs_dir=<folder>"
        ) from error
    try:
        with atomic_file(_note(place)) as file:
            now = datetime.now().astimezone().isoformat(" ", "seconds")
            file.write_text(json.dumps({"process": os.getpid(), "machine": socket.gethostname(), "since": now}))
        yield
    finally:
        _note(place).unlink(missing_ok=True)
        lock.release()  # the file stays: who removes a lock that another has opened lets two in


def is_locked(run: Path) -> bool:
    """Whether some process holds the run of this directory."""
    lock = FileLock(_place(run))
    with suppress(Timeout):
        lock.acquire(timeout=0)
        lock.release()
        return False
    return True


def _place(run: Path) -> Path:
    return run.parent / ".claims" / f"{run.name}.lock"


def _note(place: Path) -> Path:
    return place.with_suffix(".json")


def _owner(place: Path) -> str:
    try:
        return "process {process} on {machine}, since {since}".format(**json.loads(_note(place).read_text()))
    except (OSError, ValueError, KeyError):  # it has just begun or ended
        return "another process"

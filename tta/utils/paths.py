"""Where files are kept, and how they are written: whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any


def cache_dir() -> Path:
    """Folder of what is made once and used again: ``TTA_CACHE``, or ``~/.cache/tta``."""
    return Path(os.environ.get("TTA_CACHE") or Path.home() / ".cache" / "tta").expanduser()


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; what is written there takes its name only when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp's files are for their owner alone
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder; it becomes ``path`` only when the block succeeds. Who comes second keeps the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        yield temporary
        temporary.chmod(0o755)
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def folder_lock(folder: Path, wait: Callable[[Path], None]) -> AbstractContextManager[Any]:
    """Take the lock of a folder, until the block ends. The system frees it when a process dies, however it does.

    Args:
        folder: what is to be made by one process at a time; the lock is beside it.
        wait: told the lock's path when another process holds it, before that is waited for.

    Raises:
        OSError: at once, if there is no writing, or no locking, beside the folder.
    """
    from filelock import FileLock, Timeout

    path = folder.with_name(f".{folder.name}.lock")
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            wait(path)
            return lock.acquire()
    except NotImplementedError as error:
        raise OSError(f"{path}: {error}") from error

"""From an address to a complete data set: space, download, checksum, unpacking, layout, and only then its name."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tta.data.catalogue import File, Part, find
from tta.data.download import Download, check_md5, part_path
from tta.data.progress import in_bytes
from tta.data.unpack import UnusableError, unpack
from tta.utils.paths import folder_lock
from tta.utils.urls import redact

Say = Callable[[str], None]
MARGIN = 100_000_000  # bytes that are to stay free


def get(
    name: str,
    root: str | Path,
    parts: str | None = None,
    url: str | None = None,
    keep_archive: bool = False,
    say: Say = print,
) -> Path:
    """Fetch a data set into ``root`` unless it is complete there. Two processes that ask at once fetch it once.

    Args:
        name: see ``tta.data.catalogue``.
        root: folder that is to hold the data set's official folder (or that folder itself).
        parts: see ``DataSet.choose``.
        url: another address of the file; one that ends in / is of a folder with the files under their own names.
        keep_archive: keep the archives beside the unpacked folder.
        say: told what happens.

    Returns:
        The data set's folder.

    Raises:
        ValueError: for an unknown name or part, or an address that is none.
        OSError: if it cannot be fetched, checked, unpacked or written, or is not what was published.
    """
    dataset = find(name)
    chosen = dataset.choose(parts)
    files = [file.name for part in chosen for file in part.files]
    if url is not None and not url.endswith("/") and len(files) != 1:
        raise ValueError(
            f"--url is the address of one file, but {', '.join(files)} are asked for: choose one with --parts, or give "
            "the address of a folder that holds them, with / at its end"
        )
    if url is not None and not (url.startswith(("http://", "https://")) and urlsplit(url).netloc):
        raise ValueError(f"--url: expected an address http://... or https://..., got {redact(url)!r}")
    folder = dataset.place(Path(root).expanduser()).resolve()
    state = "complete already"
    if _missing(chosen, folder):
        with _alone(folder, say):
            if missing := _missing(chosen, folder):  # another process may just have fetched it
                _Fetch(folder, url, keep_archive, say).run(missing)
                state = "complete"
    say(f"{dataset.folder} is {state} in {folder}")
    return folder


def _missing(parts: Sequence[Part], folder: Path) -> list[Part]:
    return [part for part in parts if next(part.layout.problems(folder, deep=False), None)]


def _alone(folder: Path, say: Say) -> AbstractContextManager[Any]:
    def wait(path: Path) -> None:
        say(f"another process is fetching {folder.name} (it holds {path}): waiting until it has done")

    try:
        return folder_lock(folder, wait)
    except OSError as error:
        raise OSError(f"{folder.parent} cannot be written ({error}): choose another folder with --root") from error


class _Fetch:
    """Fetching of parts into the folder of a data set, whose lock is held.

    Args:
        folder: of the data set; archives and temporary folders are beside it.
        url: see ``get``.
        keep: the archives.
        say: told what happens.
    """

    def __init__(self, folder: Path, url: str | None, keep: bool, say: Say) -> None:
        self.folder = folder
        self.url = url
        self.keep = keep
        self.say = say
        self.staging = folder.with_name(f".{folder.name}.unpacking")

    def run(self, parts: Sequence[Part]) -> None:
        """Fetch the parts, one after another."""
        self._clear()  # of a process that was killed: nobody else can be here
        self._check_room(parts)
        try:
            for part in parts:
                self._fetch(part)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                f"the disk is full ({error}). What is downloaded is kept: make room in {self.folder.parent}, and the "
                "same command goes on from there"
            ) from error
        finally:
            self._clear()

    def _clear(self) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)

    def _path(self, file: File) -> Path:
        return self.folder.with_name(file.name)

    def _fetch(self, part: Part) -> None:
        archives = [self._archive(file) for file in part.files]
        try:
            made = self._make(part, archives)
        except UnusableError as error:
            raise OSError(f"{error}. {self._dispose(part)}") from error
        self._put(made)
        for file in part.files:
            if self.keep and file.packed and part_path(self._path(file)).is_file():
                part_path(self._path(file)).replace(self._path(file))
            self._download(file).remove()

    def _download(self, file: File) -> Download:
        address = self.url or file.url
        if address.endswith("/"):
            address += file.name
        return Download(
            file, self._path(file), address, self.say,
            lambda missing, total: self._refuse_full(missing + total * file.unpacked_per_byte, file.name),
        )  # fmt: skip

    def _archive(self, file: File) -> Path:
        """Path of the checked file: one that was there, or the downloaded one."""
        path = self._path(file)
        if path.is_file():
            self.say(f"{file.name}: taken from {path}, which is there already")
            try:
                self._check(file, path)
            except OSError as error:
                raise OSError(f"{error}. Remove it, or move it away, to have it downloaded") from error
            return path
        download = self._download(file)
        have = f", of which {in_bytes(download.have)} are there" if download.have else ""
        size = in_bytes(file.size) if file.size else "size not known yet"
        self.say(f"{file.name}: {size}{have}, from {urlsplit(download.url).netloc.rpartition('@')[2]}")
        download.run()
        try:
            self._check(file, download.part)
        except OSError as error:
            download.remove()
            raise OSError(f"{error}. It is removed: try again, or another address with --url") from error
        return download.part

    def _check(self, file: File, path: Path) -> None:
        md5 = check_md5(file, path)
        known = "as published" if file.md5 else "none is published to compare it with"
        self.say(f"{file.name}: md5 {md5}, {known}")

    def _make(self, part: Part, archives: Sequence[Path]) -> Path:
        """Unpack into a temporary folder, and give the folder in it that has the layout."""
        self._clear()
        new = self.staging / "new"
        new.mkdir(parents=True)
        for file, archive in zip(part.files, archives, strict=True):
            if file.packed:
                self.say(f"{file.name}: unpacking")
                unpack(archive, new)
            else:
                shutil.copyfile(archive, new / file.name)
        return _rooted(part, new, archives)

    def _dispose(self, part: Part) -> str:
        """Remove downloads that cannot be used, unless another would be the same; what to tell of it."""
        own = [str(self._path(file)) for file in part.files if self._path(file).is_file()]
        if own:
            return f"Remove {', '.join(own)}, or move it away, to have it downloaded"
        if all(file.md5 for file in part.files):
            return "Its md5 is as published, so that another download would be the same: it is kept"
        for file in part.files:
            self._download(file).remove()
        return "It is removed: try again, or another address with --url"

    def _put(self, made: Path) -> None:
        """Give what was made its place: all at once, or, where the folder is there, entry by entry."""
        if not self.folder.exists():
            made.rename(self.folder)
            return
        old = self.staging / "old"
        old.mkdir()
        for entry in sorted(made.iterdir()):
            place = self.folder / entry.name
            if place.exists():
                place.rename(old / entry.name)
            entry.rename(place)

    def _check_room(self, parts: Sequence[Part]) -> None:
        """Refuse at once what will not fit, as far as sizes are known: the archives come one after another."""
        archives, unpacked = [0], 0.0
        for file in (file for part in parts for file in part.files):
            if file.size:
                have = 0 if self._path(file).is_file() else self._download(file).have
                archives.append(0 if self._path(file).is_file() else file.size - have)
                unpacked += file.size * file.unpacked_per_byte
        if unpacked:
            self._refuse_full((sum(archives) if self.keep else max(archives)) + unpacked, self.folder.name)

    def _refuse_full(self, needed: float, what: str) -> None:
        free = shutil.disk_usage(self.folder.parent).free
        if needed + MARGIN > free:
            raise OSError(
                f"{what} does not fit: {in_bytes(needed)} are needed for the archive and what is unpacked of it, but "
                f"{self.folder.parent} has {in_bytes(free)} free. Make room, or choose another disk with --root"
            )


def _rooted(part: Part, new: Path, archives: Sequence[Path]) -> Path:
    """The folder in what was unpacked that has the layout: archives and mirrors differ in the folders around it."""
    candidates = [new, *sorted(new.glob("*/")), *sorted(new.glob("*/*/"))]
    faults = {folder: list(part.layout.problems(folder, deep=False)) for folder in candidates[:SEARCHED]}
    best = min(faults, key=lambda folder: len(faults[folder]))
    problems = faults[best] or list(part.layout.problems(best, deep=True))
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise UnusableError(f"{', '.join(map(str, archives))} does not hold what it should: {shown}")
    return best


SEARCHED = 50
"""Folders of an archive that are looked at for the layout, from the outermost."""

"""Downloads over HTTP that go on where they were cut off, and take no other file for the right one."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import requests
import urllib3

from tta.data.catalogue import File
from tta.data.progress import Moved, bar, in_bytes
from tta.utils.paths import atomic_file
from tta.utils.urls import redact
from tta.utils.validation import is_web_page

CHUNK = 1 << 20  # bytes that are read at a time; what a killed process loses
PAUSES = (1.0, 2.0, 5.0, 10.0, 20.0)  # seconds before each new attempt; after the last, it is given up
LONGEST = 120.0  # seconds, of those that a server may ask to wait
TIMEOUT = (15, 60)  # seconds to connect, and between two chunks


class _TryAgainError(Exception):
    """Something that may be over soon, after ``pause`` seconds if the server asked for that."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class Origin:
    """Where a part of a file is from, kept beside it.

    Args:
        url: address, without logins and tokens, which may be others when it is gone on with.
        size: of the whole file in bytes; ``None`` if the server did not tell.
        validator: strong ETag, or date of the last change: another one means another content.
    """

    url: str
    size: int | None
    validator: str | None


class Download:
    """A file on its way: its bytes so far are in ``part``, until it is complete, checked and used.

    Args:
        file: to download.
        path: of the complete file.
        url: address to take it from.
        say: told what is worth telling.
        room: called with the bytes still to come and the bytes of the file when the server has told them; raises if
            they do not fit on the disk.
    """

    def __init__(
        self, file: File, path: Path, url: str, say: Callable[[str], None], room: Callable[[int, int], None]
    ) -> None:
        self.file = file
        self.path = path
        self.url = url
        self.say = say
        self.room = room
        self.part = part_path(path)
        self._note = self.part.with_name(f"{self.part.name}.json")

    def run(self) -> None:
        """Download what is not there yet.

        Dropped connections and passing faults of the server are tried again; the count begins anew after each MiB.

        Raises:
            OSError: if the server refuses or offers something else, or if it fails again and again: what is there is
                kept.
        """
        failures = 0
        with bar(self.file.name) as moved:
            while True:
                before = self.have
                try:
                    return self._attempt(moved)
                except (
                    _TryAgainError, requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError,
                ) as error:  # fmt: skip
                    failures = 0 if self.have - before >= CHUNK else failures
                    self._pause(error, failures)
                    failures += 1
                except requests.RequestException as error:
                    raise OSError(
                        f"{self.file.name} could not be downloaded from {_bare_url(self.url)}: {type(error).__name__}. "
                        "Take it from another address with --url"
                    ) from error

    def remove(self) -> None:
        """Remove what is there of it."""
        self.part.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    @property
    def have(self) -> int:
        """Bytes that are there."""
        return self.part.stat().st_size if self.part.is_file() else 0

    def _pause(self, error: Exception, failures: int) -> None:
        if isinstance(error, requests.exceptions.SSLError) or failures == len(PAUSES):
            kept = f"{in_bytes(self.have)} are kept in {self.part}: the same command goes on from there"
            raise OSError(
                f"{self.file.name} could not be downloaded from {_bare_url(self.url)}: {_reason(error)}. "
                + (kept if self.have else "Try again later, or take it from another address with --url")
            ) from error
        pause = max(PAUSES[failures], min(getattr(error, "pause", 0.0), LONGEST))
        have = f" from {in_bytes(self.have)}" if self.have else ""
        self.say(f"{self.file.name}: {_reason(error)}; trying again{have} in {pause:g} s")
        time.sleep(pause)

    def _attempt(self, moved: Moved) -> None:
        known = self._origin()
        same = known is not None and known.url == _bare_url(self.url)
        have = self._usable(known)
        if have and have == (self.file.size or (known.size if known else None)):
            return
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if known and same and known.validator:
                headers["If-Range"] = known.validator
        with requests.get(self.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            start, total = self._answer(response, have)
            origin = Origin(_bare_url(self.url), total, _validator(response))
            changed = known and same and (known.validator, known.size) != (origin.validator, origin.size)
            if start and changed and start != total:
                self.remove()  # the rest of another file than that which was begun
                raise _TryAgainError("the file has changed on the server")
            if have and not start:
                why = (
                    "the file has changed on the server" if changed else "the server cannot go on where it was cut off"
                )
                self.say(f"{self.file.name}: {why}: it is downloaded from its beginning")
            if start != total:
                if total:
                    self.room(total - start, total)
                self._receive(response, start, origin, moved)

    def _usable(self, known: Origin | None) -> int:
        """Bytes to go on from: those there, if something will tell whether the rest belongs to them; else none."""
        told = known is not None and known.url == _bare_url(self.url) and known.validator is not None
        if not (self.file.md5 or told) or self.have > (self.file.size or self.have):
            return 0
        return self.have

    def _answer(self, response: requests.Response, have: int) -> tuple[int, int | None]:
        """Read the head of an answer: first byte that comes, and bytes of the whole file (``None``: not told)."""
        code, what = (
            response.status_code,
            f"{_bare_url(response.url)} answers {response.status_code} {response.reason}",
        )
        if code >= 500 or code in (408, 425, 429):
            after = response.headers.get("Retry-After", "")
            raise _TryAgainError(f"the server answers {code} {response.reason}", float(after) if after.isdigit() else 0)
        span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("Content-Range", ""))
        if code == 416 and span and int(span[2]) == have:
            return have, have
        if code == 416 or (code == 206 and (span is None or int(span[1] or -1) != have)):
            self.remove()
            raise _TryAgainError("the server cannot go on where it was cut off")
        if code not in (200, 206):
            raise OSError(
                f"{self.file.name} could not be downloaded: {what}. Take it from another address with --url, put it at "
                f"{self.path} by other means, or try again later"
            )
        if response.headers.get("Content-Type", "").startswith(("text/html", "application/xhtml")):
            raise self._page(response)
        length = response.headers.get("Content-Length")
        total = int(span[2]) if span else int(length) if length else None
        if self.file.size is not None and total not in (None, self.file.size):
            raise OSError(
                f"{_bare_url(response.url)} is not the file that was published: expected {self.file.size} bytes, the "
                f"server offers {total}"
            )
        if total == 0:
            raise _TryAgainError("the server gives an empty file")
        return (have if code == 206 else 0), self.file.size or total

    def _receive(self, response: requests.Response, start: int, origin: Origin, moved: Moved) -> None:
        chunks = response.raw.stream(CHUNK, decode_content=False)  # the bytes as they are, whatever a server calls them
        first = next(chunks, b"")
        if not start and is_web_page(first[:256]):
            raise self._page(response)
        with atomic_file(self._note) as note:
            note.write_text(json.dumps(asdict(origin)))
        done = start
        with self.part.open("ab" if start else "wb") as out:
            for chunk in itertools.chain([first], chunks):
                out.write(chunk)
                done += len(chunk)
                moved(done, origin.size)
        if origin.size is not None and done != origin.size:
            raise _TryAgainError("the connection was cut off")

    def _page(self, response: requests.Response) -> OSError:
        return OSError(
            f"{self.file.name} could not be downloaded: {_bare_url(response.url)} gives a web page, not the file. "
            "Open it in a browser to see what it says, or take the file from another address with --url"
        )

    def _origin(self) -> Origin | None:
        try:
            return Origin(**json.loads(self._note.read_text()))
        except (OSError, ValueError, TypeError):
            return None


def part_path(path: Path) -> Path:
    """Where a file is while it is on its way."""
    return path.with_name(f"{path.name}.part")


def check_md5(file: File, path: Path) -> str:
    """Return the md5 sum of a file in hexadecimal.

    Raises:
        OSError: if it is not that which is known.
    """
    digest = hashlib.md5(usedforsecurity=False)
    done, size = 0, path.stat().st_size
    with path.open("rb") as opened, bar(f"checking {file.name}") as moved:
        while chunk := opened.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            moved(done, size)
    if file.md5 not in (None, digest.hexdigest()):
        raise OSError(f"{path} is not the file that was published: expected md5 {file.md5}, got {digest.hexdigest()}")
    return digest.hexdigest()


def _bare_url(url: str) -> str:
    """Give a URL without its login and its query, which holds the token of a signed one."""
    return redact(url).partition("?")[0]


def _validator(response: requests.Response) -> str | None:
    etag = response.headers.get("ETag")
    if etag is None or etag.startswith("W/"):  # a weak one may stay the same while bytes change
        return response.headers.get("Last-Modified")
    return etag


def _reason(error: Exception) -> str:
    if isinstance(error, _TryAgainError):
        return str(error)
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return "the server does not answer"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "the connection was cut off"
    told = re.search(r"\[Errno -?\d+\] [^)'\"]+|RemoteDisconnected|certificate verify failed", str(error))
    return f"no connection ({told[0] if told else type(error).__name__})"

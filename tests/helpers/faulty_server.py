"""A web server on loopback that fails as it is told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["Handler", bytes], None]


class Server(ThreadingHTTPServer):
    """Serves ``files``, with ranges and ETags, but answers the first requests with ``faults``, one for each."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.etag: str | None = '"1"'
        self.faults: list[Answer] = []
        self.requests: list[dict[str, str]] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    @property
    def ranges(self) -> list[str | None]:
        """First byte that each request asked for."""
        return [request.get("Range") for request in self.requests]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients that are killed hang up."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests.append(dict(self.headers))
        content = self.server.files.get(self.path.lstrip("/").partition("?")[0])
        self.close_connection = True
        if self.server.faults:
            self.server.faults.pop(0)(self, content or b"")
        elif content is None:
            status(404)(self, b"")
        else:
            whole(self, content)

    def head(self, code: int, length: int | None, **headers: str) -> None:
        self.send_response(code)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def _from(handler: Handler, content: bytes) -> int | None:
    """First byte that is asked for and to be given, if it is not the whole file."""
    span = handler.headers.get("Range")
    condition = handler.headers.get("If-Range")
    if span is None or condition not in (None, handler.server.etag):
        return None
    return int(span.removeprefix("bytes=").rstrip("-"))


def _begin(handler: Handler, content: bytes) -> bytes:
    """Send the head of a right answer, and return its body."""
    start = _from(handler, content)
    if start is None:
        handler.head(200, len(content))
        return content
    if start >= len(content):
        handler.head(416, 0, Content_Range=f"bytes */{len(content)}")
        return b""
    handler.head(206, len(content) - start, Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}")
    return content[start:]


def whole(handler: Handler, content: bytes) -> None:
    """The right answer."""
    handler.wfile.write(_begin(handler, content))


def cut(after: int) -> Answer:
    """The right answer, but the connection ends after so many bytes."""
    return lambda handler, content: void(handler.wfile.write(_begin(handler, content)[:after]))


def slow(piece: int, seconds: float) -> Answer:
    """The right answer, with a pause after each piece."""

    def answer(handler: Handler, content: bytes) -> None:
        body = _begin(handler, content)
        for start in range(0, len(body), piece):
            handler.wfile.write(body[start : start + piece])
            handler.wfile.flush()
            time.sleep(seconds)

    return answer


def hold(event: threading.Event) -> Answer:
    """The right answer, the second half of it when the event has come."""

    def answer(handler: Handler, content: bytes) -> None:
        body = _begin(handler, content)
        handler.wfile.write(body[: len(body) // 2])
        handler.wfile.flush()
        event.wait(60)
        handler.wfile.write(body[len(body) // 2 :])

    return answer


def no_ranges(handler: Handler, content: bytes) -> None:
    """The whole file, whatever is asked for."""
    handler.head(200, len(content))
    handler.wfile.write(content)


def unnamed_length(handler: Handler, content: bytes) -> None:
    """The whole file without its length: it ends with the connection."""
    handler.head(200, None)
    handler.wfile.write(content)


def status(code: int, **headers: str) -> Answer:
    """An error, with a page that says so."""

    def answer(handler: Handler, _: bytes) -> None:
        page = b"<html><body>sorry</body></html>"
        handler.head(code, len(page), Content_Type="text/html", **headers)
        handler.wfile.write(page)

    return answer


def page(content_type: str, code: int = 200) -> Answer:
    """A web page instead of the file."""

    def answer(handler: Handler, _: bytes) -> None:
        text = b"\n<!DOCTYPE html><html><body>log in first</body></html>"
        handler.head(code, len(text), Content_Type=content_type)
        handler.wfile.write(text)

    return answer


def other(content: bytes) -> Answer:
    """Another file."""
    return lambda handler, _: no_ranges(handler, content)


def hang_up(handler: Handler, _: bytes) -> None:
    """No answer at all."""
    handler.connection.close()


def void(_: Any) -> None:
    """Nothing."""


@contextmanager
def running() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()

"""Several processes, and some that are killed; test_get.py has the same within one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers import faulty_server, tiny_data
from helpers.faulty_server import Server
from helpers.tiny_data import MD5, TAR, Said, complete, left
from tta.data.obtain import get

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]


def start(server: Server, root: Path, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_PROXY": "127.0.0.1"}
    origin = (server.url("TINY-C.tar"), str(len(TAR)), MD5)
    command = [sys.executable, tiny_data.__file__, *origin, *options, "get", "tiny", "--root", str(root)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@pytest.fixture
def event() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_two_at_once__download_once(tmp_path: Path, server: Server, event: threading.Event) -> None:
    server.faults = [faulty_server.hold(event)]
    first = start(server, tmp_path)
    wait_for(lambda: server.requests)
    second = start(server, tmp_path)
    assert second.stdout is not None
    assert str(tmp_path / ".TINY-C.lock") in second.stdout.readline()
    event.set()
    (told_first, _), (told_second, _) = first.communicate(timeout=60), second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert MD5 in told_first
    assert MD5 not in told_second
    assert len(server.requests) == 1
    assert complete(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_download__stopped_goes_on(
    tmp_path: Path, server: Server, event: threading.Event, number: signal.Signals
) -> None:
    server.faults = [faulty_server.cut(30_000), faulty_server.hold(event)]
    process = start(server, tmp_path)
    wait_for(lambda: len(server.requests) == 2)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in error
    have = size(tmp_path / "TINY-C.tar.part")
    assert have >= 30_000
    assert not (tmp_path / "TINY-C").exists()
    get("tiny", tmp_path, say=Said())
    assert server.ranges[2:] == [f"bytes={have}-"]
    assert complete(tmp_path)


def test_unpacking__killed_begins_anew(tmp_path: Path, server: Server) -> None:
    process = start(server, tmp_path, "--slow-unpacking")
    wait_for(lambda: size(tmp_path / ".TINY-C.unpacking" / "new" / "TINY-C" / "fog.npy"))
    process.kill()
    process.communicate(timeout=60)
    assert left(tmp_path) == {".TINY-C.unpacking", "TINY-C.tar.part", "TINY-C.tar.part.json"}
    get("tiny", tmp_path, say=Said())
    assert len(server.requests) == 1
    assert complete(tmp_path)

"""Every fault of a download, against a server on loopback."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import faulty_server
from helpers.errors import raises_naming
from helpers.faulty_server import Server, cut
from helpers.tiny_data import MD5, TAR, Said, complete, left
from tta.data import download
from tta.data.catalogue import File
from tta.data.obtain import get


def test_cut__goes_on_where_it_was(tmp_path: Path, server: Server) -> None:
    server.faults = [cut(20_000), cut(0), faulty_server.hang_up, cut(30_000), cut(1)]
    get("tiny", tmp_path)
    assert complete(tmp_path)
    assert server.ranges == [None, *[f"bytes={n}-" for n in (20_000, 20_000, 20_000, 50_000, 50_001)]]
    assert all(request["If-Range"] == '"1"' for request in server.requests[1:])


@given(cuts=st.lists(st.integers(0, len(TAR) - 1), max_size=4), ranges=st.lists(st.booleans(), min_size=4, max_size=4))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cut__anywhere_gives_the_same_bytes(
    cuts: list[int], ranges: list[bool], server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("root")
    server.faults = [cut(after) for after in cuts]
    for place, able in enumerate(ranges):
        if not able and place < len(cuts):
            server.faults.insert(place, faulty_server.no_ranges)
    server.faults = server.faults[:4]
    get("tiny", root, say=Said())
    assert complete(root)
    server.faults = []


def test_cut__failures_count_anew_after_progress(tmp_path: Path, server: Server) -> None:
    server.faults = [cut(10_000)] * 12
    get("tiny", tmp_path)
    assert complete(tmp_path)
    assert len(server.requests) == 13


def test_cut__given_up_keeps_what_is_there(tmp_path: Path, server: Server) -> None:
    server.faults = [cut(20_000), *[cut(0)] * 4]
    with raises_naming(OSError, "20.0 kB", tmp_path / "TINY-C.tar.part"):
        get("tiny", tmp_path)
    assert len(server.requests) == 5
    said = Said()
    get("tiny", tmp_path, say=said)
    assert server.ranges[-1] == "bytes=20000-"
    assert "20.0 kB" in str(said)
    assert complete(tmp_path)


def test_server__absent_is_named(tmp_path: Path, server: Server) -> None:
    with raises_naming(OSError, "TINY-C.tar", "http://127.0.0.1:9/TINY-C.tar"):
        get("tiny", tmp_path, url="http://127.0.0.1:9/TINY-C.tar")


def test_server__silent_is_asked_again(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", (1, 0.05))
    server.faults = [faulty_server.slow(20_000, 0.3)]
    get("tiny", tmp_path)
    assert len(server.requests) == 2
    assert complete(tmp_path)


def test_server__ignoring_ranges_begins_anew(tmp_path: Path, server: Server) -> None:
    server.faults = [cut(20_000), faulty_server.no_ranges]
    get("tiny", tmp_path)
    assert server.ranges == [None, "bytes=20000-"]
    assert complete(tmp_path)


def test_status__passing_faults_are_tried_again(tmp_path: Path, server: Server) -> None:
    codes = (500, 503, 429, 408)
    server.faults = [faulty_server.status(code) for code in codes]
    said = Said()
    get("tiny", tmp_path, say=said)
    assert all(str(code) in str(said) for code in codes)
    assert complete(tmp_path)


def test_status__retry_after_is_waited_for(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    server.faults = [faulty_server.status(429, Retry_After="7"), faulty_server.status(503, Retry_After="9999999")]
    get("tiny", tmp_path)
    assert [seconds for seconds in slept if seconds >= 1] == [7, download.LONGEST]


def test_status__lasting_fault_is_given_up(tmp_path: Path, server: Server) -> None:
    server.faults = [faulty_server.status(500)] * 9
    with raises_naming(OSError, "TINY-C.tar", "500", "--url"):
        get("tiny", tmp_path)
    assert left(tmp_path) == set()
    assert len(server.requests) == 5


def test_status__refusals_are_not_tried_again(tmp_path: Path, server: Server) -> None:
    for count, code in enumerate((401, 403, 404, 410), 1):
        server.faults = [faulty_server.status(code)]
        with raises_naming(OSError, server.url("TINY-C.tar"), code, "--url", tmp_path / "TINY-C.tar"):
            get("tiny", tmp_path)
        assert len(server.requests) == count


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_web_page__spares_what_is_there(tmp_path: Path, server: Server, kind: str) -> None:
    server.faults = [cut(20_000), faulty_server.page(kind)]
    with raises_naming(OSError, server.url("TINY-C.tar")):
        get("tiny", tmp_path)
    assert (tmp_path / "TINY-C.tar.part").read_bytes() == TAR[:20_000]


@pytest.mark.usefixtures("unchecked")
def test_web_page__is_refused_without_a_known_size(tmp_path: Path, server: Server) -> None:
    for kind in ("text/html; charset=utf-8", "application/octet-stream"):
        server.faults = [faulty_server.page(kind)]
        with raises_naming(OSError, "TINY-C.tar", server.url("TINY-C.tar"), "--url"):
            get("tiny", tmp_path)
        assert left(tmp_path) == set()


def test_md5__wrong_bytes_are_removed(tmp_path: Path, server: Server) -> None:
    wrong = TAR[:-1] + b"x"
    server.faults = [faulty_server.other(wrong)]
    with raises_naming(OSError, "md5", MD5, hashlib.md5(wrong).hexdigest(), "--url"):
        get("tiny", tmp_path)
    assert left(tmp_path) == set()
    get("tiny", tmp_path)
    assert complete(tmp_path)


def test_length__another_is_another_file(tmp_path: Path, server: Server) -> None:
    server.faults = [faulty_server.other(TAR[:-1])]
    with raises_naming(OSError, server.url("TINY-C.tar"), len(TAR), len(TAR) - 1):
        get("tiny", tmp_path)
    assert left(tmp_path) == set()


def test_length__need_not_be_told(tmp_path: Path, server: Server) -> None:
    server.faults = [faulty_server.unnamed_length]
    get("tiny", tmp_path)
    assert complete(tmp_path)


def test_changed_file__is_begun_anew(tmp_path: Path, server: Server) -> None:
    server.files["TINY-C.tar"] = bytes(len(TAR))
    server.faults = [cut(20_000), *[cut(0)] * 4]
    with raises_naming(OSError, tmp_path / "TINY-C.tar.part"):
        get("tiny", tmp_path)
    server.files["TINY-C.tar"], server.etag = TAR, '"2"'
    get("tiny", tmp_path)
    assert complete(tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_changed_file__noticed_without_if_range(tmp_path: Path, server: Server) -> None:
    """A server that ignores the condition still tells another ETag."""

    def change(handler: Any, content: bytes) -> None:
        server.etag = '"2"'
        del handler.headers["If-Range"]
        faulty_server.whole(handler, content)

    server.faults = [cut(20_000), change]
    get("tiny", tmp_path)
    assert server.ranges == [None, "bytes=20000-", None]
    assert complete(tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_validator__none_and_no_checksum_never_resumes(tmp_path: Path, server: Server) -> None:
    server.etag = None
    server.faults = [cut(20_000)]
    get("tiny", tmp_path)
    assert server.ranges == [None, None]
    assert complete(tmp_path)


def test_validator__weak_etag_is_no_condition(tmp_path: Path, server: Server) -> None:
    server.etag = 'W/"1"'
    server.faults = [cut(20_000)]
    get("tiny", tmp_path)
    assert "If-Range" not in server.requests[1]
    assert server.ranges[1] == "bytes=20000-"  # the checksum will tell
    assert complete(tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_no_checksum__resumes_and_tells_the_md5(tmp_path: Path, server: Server) -> None:
    server.faults = [cut(20_000)]
    said = Said()
    get("tiny", tmp_path, say=said)
    assert MD5 in str(said)
    assert server.ranges == [None, "bytes=20000-"]
    assert complete(tmp_path)


def test_part__longer_than_the_file_begins_anew(tmp_path: Path, server: Server) -> None:
    (tmp_path / "TINY-C.tar.part").write_bytes(TAR + b"more")
    get("tiny", tmp_path)
    assert server.ranges == [None]
    assert complete(tmp_path)


@pytest.mark.parametrize("more", [b"", b"more"])
@pytest.mark.usefixtures("unchecked")
def test_part__complete_or_too_long_without_a_size(tmp_path: Path, server: Server, more: bytes) -> None:
    """A part that has all bytes is taken; one beyond the end is begun anew."""
    (tmp_path / "TINY-C.tar.part").write_bytes(TAR + more)
    note = {"url": server.url("TINY-C.tar"), "size": None, "validator": '"1"'}
    (tmp_path / "TINY-C.tar.part.json").write_text(json.dumps(note))
    get("tiny", tmp_path)
    assert server.ranges == [f"bytes={len(TAR + more)}-", *[None] * bool(more)]
    assert complete(tmp_path)


def test_part__with_an_unreadable_note_is_resumed(tmp_path: Path, server: Server) -> None:
    (tmp_path / "TINY-C.tar.part").write_bytes(TAR[:20_000])
    (tmp_path / "TINY-C.tar.part.json").write_text("{")
    get("tiny", tmp_path)
    assert server.ranges == ["bytes=20000-"]
    assert complete(tmp_path)


def test_mirror__goes_on_with_what_another_began(tmp_path: Path, server: Server) -> None:
    server.faults = [cut(20_000), *[cut(0)] * 4]
    with raises_naming(OSError, tmp_path / "TINY-C.tar.part"):
        get("tiny", tmp_path)
    server.files = {"mirror/TINY-C.tar": TAR}
    get("tiny", tmp_path, url=server.url("mirror/"))
    assert server.ranges[-1] == "bytes=20000-"
    assert "If-Range" not in server.requests[-1]
    assert complete(tmp_path)


def test_md5__is_that_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(TAR)
    assert download.check_md5(File("file", ""), path) == hashlib.md5(TAR).hexdigest()

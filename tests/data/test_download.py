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
from helpers.faulty_server import Server, cut
from helpers.tiny_data import MD5, TAR, Said, complete, left
from tta.data import download
from tta.data.catalogue import File
from tta.data.obtain import get


def test_connections_that_are_cut_off_go_on_where_they_were(tmp_path: Path, server: Server) -> None:
    server.faults = [cut(20_000), cut(0), faulty_server.hang_up, cut(30_000), cut(1)]
    get("tiny", tmp_path)
    assert complete(tmp_path)
    assert server.ranges == [None, *[f"bytes={n}-" for n in (20_000, 20_000, 20_000, 50_000, 50_001)]]
    assert all(request["If-Range"] == '"1"' for request in server.requests[1:])


@given(cuts=st.lists(st.integers(0, len(TAR) - 1), max_size=4), ranges=st.lists(st.booleans(), min_size=4, max_size=4))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cuts_give_the_same_bytes(
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


def test_cuts_are_counted_anew_after_progress(tmp_path: Path, server: Server) -> None:
    server.faults = [cut(10_000)] * 12
    get("tiny", tmp_path)
    assert complete(tmp_path)
    assert len(server.requests) == 13


def test_endless_cuts_are_given_up_and_what_is_there_is_kept(tmp_path: Path, server: Server) -> None:
    server.faults = [cut(20_000), *[cut(0)] * 4]
    with pytest.raises(OSError, match=r"the connection was cut off. 20.0 kB are kept in .*TINY-C.tar.part: the"):
        get("tiny", tmp_path)
    assert len(server.requests) == 5
    said = Said()
    get("tiny", tmp_path, say=said)
    assert server.ranges[-1] == "bytes=20000-"
    assert "of which 20.0 kB are there" in str(said)
    assert complete(tmp_path)


def test_no_server(tmp_path: Path, server: Server) -> None:
    with pytest.raises(
        OSError, match=r"TINY-C.tar could not be downloaded from http://127.0.0.1:9/TINY-C.tar: no conn"
    ):
        get("tiny", tmp_path, url="http://127.0.0.1:9/TINY-C.tar")


def test_a_server_that_does_not_answer(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", (1, 0.05))
    server.faults = [faulty_server.slow(20_000, 0.3)]
    said = Said()
    get("tiny", tmp_path, say=said)
    assert "the server does not answer; trying again from" in str(said)
    assert complete(tmp_path)


def test_a_server_that_ignores_ranges(tmp_path: Path, server: Server) -> None:
    server.faults = [cut(20_000), faulty_server.no_ranges]
    said = Said()
    get("tiny", tmp_path, say=said)
    assert "the server cannot go on where it was cut off: it is downloaded from its beginning" in str(said)
    assert complete(tmp_path)


@pytest.mark.parametrize("code", [500, 502, 503, 429, 408])
def test_passing_faults_are_tried_again(tmp_path: Path, server: Server, code: int) -> None:
    server.faults = [faulty_server.status(code)] * 4
    said = Said()
    get("tiny", tmp_path, say=said)
    assert f"the server answers {code}" in str(said)
    assert complete(tmp_path)


def test_a_server_may_ask_to_wait(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    server.faults = [faulty_server.status(429, Retry_After="7"), faulty_server.status(503, Retry_After="9999999")]
    get("tiny", tmp_path)
    assert [seconds for seconds in slept if seconds >= 1] == [7, download.LONGEST]


def test_a_server_that_stays_broken(tmp_path: Path, server: Server) -> None:
    server.faults = [faulty_server.status(500)] * 9
    with pytest.raises(
        OSError, match=r"the server answers 500 Internal Server Error. Try again later, or take it from "
    ):
        get("tiny", tmp_path)
    assert left(tmp_path) == set()
    assert len(server.requests) == 5


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_refusals_are_not_tried_again(tmp_path: Path, server: Server, code: int) -> None:
    server.faults = [faulty_server.status(code)]
    with pytest.raises(
        OSError, match=rf"TINY-C.tar could not be downloaded: http\S+ answers {code} .* --url, put it at "
    ):
        get("tiny", tmp_path)
    assert len(server.requests) == 1


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_no_file_and_spares_what_is_there(tmp_path: Path, server: Server, kind: str) -> None:
    server.faults = [cut(20_000), faulty_server.page(kind)]
    with pytest.raises(OSError, match=r"gives a web page instead of the file|expected .* bytes, the server offers"):
        get("tiny", tmp_path)
    assert (tmp_path / "TINY-C.tar.part").read_bytes() == TAR[:20_000]


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
@pytest.mark.usefixtures("unchecked")
def test_a_web_page_where_the_size_is_not_known(tmp_path: Path, server: Server, kind: str) -> None:
    server.faults = [faulty_server.page(kind)]
    with pytest.raises(OSError, match=r"gives a web page instead of the file. Open it in a browser"):
        get("tiny", tmp_path)
    assert left(tmp_path) == set()


def test_wrong_bytes_are_removed(tmp_path: Path, server: Server) -> None:
    server.faults = [faulty_server.other(TAR[:-1] + b"x")]
    with pytest.raises(
        OSError, match=rf"is not the file that was published: expected md5 {MD5}, got \w+. It is removed"
    ):
        get("tiny", tmp_path)
    assert left(tmp_path) == set()
    get("tiny", tmp_path)
    assert complete(tmp_path)


def test_another_length_is_another_file(tmp_path: Path, server: Server) -> None:
    server.faults = [faulty_server.other(TAR[:-1])]
    with pytest.raises(OSError, match=f"expected {len(TAR)} bytes, the server offers {len(TAR) - 1}"):
        get("tiny", tmp_path)
    assert left(tmp_path) == set()


def test_a_length_that_is_not_told(tmp_path: Path, server: Server) -> None:
    server.faults = [faulty_server.unnamed_length]
    get("tiny", tmp_path)
    assert complete(tmp_path)


def test_a_file_that_changes_between_attempts_is_begun_anew(tmp_path: Path, server: Server) -> None:
    server.files["TINY-C.tar"] = bytes(len(TAR))
    server.faults = [cut(20_000), *[cut(0)] * 4]
    with pytest.raises(OSError, match="are kept"):
        get("tiny", tmp_path)
    server.files["TINY-C.tar"], server.etag = TAR, '"2"'
    said = Said()
    get("tiny", tmp_path, say=said)
    assert "the file has changed on the server: it is downloaded from its beginning" in str(said)
    assert complete(tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_a_changed_file_is_noticed_though_the_server_ignores_the_condition(tmp_path: Path, server: Server) -> None:
    def careless(handler: Any, content: bytes) -> None:
        del handler.headers["If-Range"]
        faulty_server.whole(handler, content)

    def change(handler: Any, content: bytes) -> None:
        server.etag = '"2"'
        careless(handler, content)

    server.faults = [cut(20_000), change]
    said = Said()
    get("tiny", tmp_path, say=said)
    assert "the file has changed on the server; trying again" in str(said)
    assert server.ranges == [None, "bytes=20000-", None]
    assert complete(tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_without_checksum_and_validator_nothing_is_resumed(tmp_path: Path, server: Server) -> None:
    server.etag = None
    server.faults = [cut(20_000)]
    get("tiny", tmp_path)
    assert server.ranges == [None, None]
    assert complete(tmp_path)


def test_a_weak_etag_is_no_condition(tmp_path: Path, server: Server) -> None:
    server.etag = 'W/"1"'
    server.faults = [cut(20_000)]
    get("tiny", tmp_path)
    assert "If-Range" not in server.requests[1]
    assert server.ranges[1] == "bytes=20000-"  # the checksum will tell
    assert complete(tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_without_a_checksum_it_says_so(tmp_path: Path, server: Server) -> None:
    server.faults = [cut(20_000)]
    said = Said()
    get("tiny", tmp_path, say=said)
    assert f"md5 {MD5}, none is published to compare it with" in str(said)
    assert "TINY-C.tar: size not known yet, from 127.0.0.1" in str(said)
    assert server.ranges == [None, "bytes=20000-"]
    assert complete(tmp_path)


def test_a_part_that_is_longer_than_the_file(tmp_path: Path, server: Server) -> None:
    (tmp_path / "TINY-C.tar.part").write_bytes(TAR + b"more")
    get("tiny", tmp_path)
    assert server.ranges == [None]
    assert complete(tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_a_part_that_is_all_there_though_its_length_was_not_told(tmp_path: Path, server: Server) -> None:
    (tmp_path / "TINY-C.tar.part").write_bytes(TAR)
    note = {"url": server.url("TINY-C.tar"), "size": None, "validator": '"1"'}
    (tmp_path / "TINY-C.tar.part.json").write_text(json.dumps(note))
    get("tiny", tmp_path)
    assert server.ranges == [f"bytes={len(TAR)}-"]
    assert complete(tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_a_part_beyond_the_end_is_begun_anew(tmp_path: Path, server: Server) -> None:
    (tmp_path / "TINY-C.tar.part").write_bytes(TAR + b"more")
    note = {"url": server.url("TINY-C.tar"), "size": None, "validator": '"1"'}
    (tmp_path / "TINY-C.tar.part.json").write_text(json.dumps(note))
    get("tiny", tmp_path)
    assert server.ranges == [f"bytes={len(TAR) + 4}-", None]
    assert complete(tmp_path)


def test_a_note_that_cannot_be_read_is_none(tmp_path: Path, server: Server) -> None:
    (tmp_path / "TINY-C.tar.part").write_bytes(TAR[:20_000])
    (tmp_path / "TINY-C.tar.part.json").write_text("{")
    get("tiny", tmp_path)
    assert server.ranges == ["bytes=20000-"]
    assert complete(tmp_path)


def test_a_mirror_goes_on_with_what_another_began(tmp_path: Path, server: Server) -> None:
    server.faults = [cut(20_000), *[cut(0)] * 4]
    with pytest.raises(OSError, match="are kept"):
        get("tiny", tmp_path)
    server.files = {"mirror/TINY-C.tar": TAR}
    get("tiny", tmp_path, url=server.url("mirror/"))
    assert server.ranges[-1] == "bytes=20000-"
    assert "If-Range" not in server.requests[-1]
    assert complete(tmp_path)


def test_md5_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(TAR)
    assert download.check_md5(File("file", ""), path) == hashlib.md5(TAR).hexdigest()

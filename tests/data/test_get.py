"""From an address to a complete folder."""

from __future__ import annotations

import errno
import shutil
import signal
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import faulty_server, tiny_data
from helpers.errors import raises_naming
from helpers.faulty_server import Server
from helpers.tiny_data import MD5, TAR, Said, complete, left
from tta.data import catalogue, obtain
from tta.data.catalogue import DataSet, File, Part
from tta.data.cli import main
from tta.data.layouts import Arrays, Images
from tta.data.obtain import get


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk on which archive and folder do not fit together, by a byte."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 2 * len(TAR) - 1))


def test_get__comes_checked_and_unpacked(tmp_path: Path, server: Server) -> None:
    said = Said()
    folder = tmp_path / "new" / "root" / "TINY-C"
    assert get("tiny", tmp_path / "new" / "root", say=said) == folder
    assert complete(tmp_path / "new" / "root")
    assert MD5 in str(said)
    assert str(folder) in said[-1]
    assert server.requests[0]["Accept-Encoding"] == "identity"


def test_get__complete_is_not_fetched_again(tmp_path: Path, server: Server) -> None:
    get("tiny", tmp_path)
    shutil.copytree(tmp_path / "TINY-C", tmp_path / "of_my_own")
    for root, place in ((tmp_path, "TINY-C"), (tmp_path / "TINY-C", "TINY-C"), (tmp_path / "of_my_own", "of_my_own")):
        assert get("tiny", root) == tmp_path / place
    assert len(server.requests) == 1


def test_get__complete_read_only_folder_needs_no_lock(tmp_path: Path, server: Server) -> None:
    get("tiny", tmp_path)
    (tmp_path / ".TINY-C.lock").unlink()
    get("tiny", tmp_path)
    assert left(tmp_path) == {"TINY-C"}
    assert not (tmp_path / ".TINY-C.lock").exists()


def test_get__folder_of_official_name_is_the_place(tmp_path: Path, server: Server) -> None:
    assert get("tiny", tmp_path / "TINY-C") == tmp_path / "TINY-C"
    assert complete(tmp_path)


def test_get__folder_may_link_to_another_disk(tmp_path: Path, server: Server) -> None:
    (tmp_path / "big" / "TINY-C").mkdir(parents=True)
    (tmp_path / "TINY-C").symlink_to(tmp_path / "big" / "TINY-C")
    get("tiny", tmp_path)
    assert complete(tmp_path / "big")


def test_get__nothing_is_unpacked_before_the_md5(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obtain, "unpack", lambda *_: pytest.fail("unpacked"))
    server.faults = [faulty_server.other(TAR[:-1] + b"x")]
    with raises_naming(OSError, "md5", MD5):
        get("tiny", tmp_path)


def test_url__mirror_must_have_the_same_file(tmp_path: Path, server: Server) -> None:
    server.files["wrong.tar"] = bytes(len(TAR))
    with raises_naming(OSError, "md5", MD5):
        get("tiny", tmp_path, url=server.url("wrong.tar"))


def test_url__must_be_an_address(tmp_path: Path, server: Server) -> None:
    for url in ("mirror.org/TINY-C.tar", "ftp://mirror.org/TINY-C.tar", "http://", "/data/TINY-C.tar"):
        with raises_naming(ValueError, "--url", "https://", repr(url)):
            get("tiny", tmp_path, url=url)


@pytest.mark.usefixtures("scarce")
def test_full_disk__known_before_any_download(tmp_path: Path, server: Server) -> None:
    with raises_naming(OSError, "TINY-C", tmp_path, "--root"):
        get("tiny", tmp_path)
    assert server.requests == []
    (tmp_path / "TINY-C.tar.part").write_bytes(TAR[:20_000])  # so much less is needed
    get("tiny", tmp_path)
    assert complete(tmp_path)


@pytest.mark.usefixtures("unchecked", "scarce")
def test_full_disk__size_told_by_the_server(tmp_path: Path, server: Server) -> None:
    with raises_naming(OSError, "TINY-C.tar", tmp_path):
        get("tiny", tmp_path)
    assert left(tmp_path) == set()


def test_full_disk__while_unpacking_keeps_the_download(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(obtain, "unpack", full)
        with raises_naming(OSError, tmp_path):
            get("tiny", tmp_path)
    assert left(tmp_path) == {"TINY-C.tar.part", "TINY-C.tar.part.json"}
    get("tiny", tmp_path)
    assert len(server.requests) == 1
    assert complete(tmp_path)


def test_keep_archive__is_used_again(tmp_path: Path, server: Server) -> None:
    get("tiny", tmp_path, keep_archive=True)
    assert left(tmp_path) == {"TINY-C", "TINY-C.tar"}
    assert (tmp_path / "TINY-C.tar").read_bytes() == TAR
    shutil.rmtree(tmp_path / "TINY-C")
    get("tiny", tmp_path)
    assert left(tmp_path) == {"TINY-C", "TINY-C.tar"}
    assert len(server.requests) == 1


def test_own_archive__is_never_removed(tmp_path: Path, server: Server) -> None:
    (tmp_path / "TINY-C.tar").write_bytes(TAR[:-1])
    with raises_naming(OSError, "md5", MD5, tmp_path / "TINY-C.tar"):
        get("tiny", tmp_path)
    assert left(tmp_path) == {"TINY-C.tar"}


def test_existing_folder__gets_what_it_lacks(tmp_path: Path, server: Server) -> None:
    folder = tmp_path / "TINY-C"
    get("tiny", tmp_path)
    (folder / "fog.npy").write_bytes((folder / "fog.npy").read_bytes()[:-1])
    (folder / "labels.npy").unlink()
    (folder / "clean.npy").write_bytes(b"of my own")
    get("tiny", tmp_path)
    assert (folder / "clean.npy").read_bytes() == b"of my own"
    (folder / "clean.npy").unlink()
    assert complete(tmp_path)


def test_root__that_cannot_be_written_is_named(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file").write_text("")
    with raises_naming(OSError, tmp_path / "file", "--root"):
        get("tiny", tmp_path / "file")


def test_plain_files__are_checked_and_put_together(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = Arrays(("data.npy",), "labels.npy", (4, 32, 32, 3), 4)
    files = {"data.npy": tiny_data.npy(np.zeros((4, 32, 32, 3), np.uint8)), "labels.npy": tiny_data.npy(np.arange(4))}
    part = Part("v6", tuple(File(name, server.url(name)) for name in files), arrays)
    monkeypatch.setitem(catalogue.DATASETS, "two", DataSet("two", "Two", "TWO", (part,)))
    server.files = {**files, "labels.npy": tiny_data.npy(np.arange(5))}
    with raises_naming(OSError, "labels.npy", "(4,)", "(5,)"):
        get("two", tmp_path)
    assert not (tmp_path / "TWO").exists()
    server.files = files
    get("two", tmp_path, url=server.url(""), keep_archive=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "TWO").iterdir()} == files
    assert {file.name for file in tmp_path.iterdir()} == {"TWO", ".TWO.lock"}
    with raises_naming(ValueError, "--url", "data.npy", "labels.npy"):
        get("two", tmp_path, url=server.url("data.npy"))


def test_images__folder_that_lacks_some_is_replaced(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = {f"fog/{severity}/n00000000/a.JPEG": b"x" for severity in "12345"}
    server.files["t.tar"] = tiny_data.archive(images, folder="weather/")
    part = Part("weather", (File("t.tar", server.url("t.tar")),), Images(("fog",), classes=1, each=1))
    monkeypatch.setitem(catalogue.DATASETS, "tree", DataSet("tree", "Tree", "TREE", (part,)))
    (tmp_path / "TREE" / "fog" / "1" / "n00000000").mkdir(parents=True)
    (tmp_path / "TREE" / "snow").mkdir()
    get("tree", tmp_path)
    made = {str(path.relative_to(tmp_path / "TREE")) for path in (tmp_path / "TREE").rglob("*.JPEG")}
    assert made == set(images)
    assert {path.name for path in (tmp_path / "TREE").iterdir()} == {"fog", "snow"}
    assert left(tmp_path) == {"TREE", ".TREE.lock"}


# Two at a time, and interruptions, within one process; test_processes.py has them between processes.


@pytest.fixture
def event() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_two_at_once__download_once(tmp_path: Path, server: Server, event: threading.Event) -> None:
    asked, waiting = threading.Event(), threading.Event()

    def answer(handler: Any, content: bytes) -> None:
        asked.set()
        faulty_server.hold(event)(handler, content)

    def told(text: str) -> None:
        if ".TINY-C.lock" in text:
            waiting.set()

    server.faults = [answer]
    first = threading.Thread(target=get, args=("tiny", tmp_path), kwargs={"say": Said()}, daemon=True)
    second = threading.Thread(target=get, args=("tiny", tmp_path), kwargs={"say": told}, daemon=True)
    first.start()
    assert asked.wait(60)
    second.start()
    assert waiting.wait(60)
    event.set()
    first.join(60)
    second.join(60)
    assert len(server.requests) == 1
    assert complete(tmp_path)


def test_interrupt__exits_with_130_and_keeps_the_part(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults = [faulty_server.cut(30_000)]
    with monkeypatch.context() as patch:
        patch.setattr("time.sleep", lambda _: signal.raise_signal(signal.SIGINT))  # in the pause before a new attempt
        with pytest.raises(SystemExit) as end:
            main(["get", "tiny", "--root", str(tmp_path)])
    assert end.value.code == 130
    assert left(tmp_path) == {"TINY-C.tar.part", "TINY-C.tar.part.json"}
    get("tiny", tmp_path)
    assert server.ranges == [None, "bytes=30000-"]
    assert complete(tmp_path)


def test_staging__of_a_killed_process_is_cleared(tmp_path: Path, server: Server) -> None:
    half = tmp_path / ".TINY-C.unpacking" / "new" / "TINY-C"
    half.mkdir(parents=True)
    (half / "fog.npy").write_bytes(b"half")
    get("tiny", tmp_path)
    assert complete(tmp_path)

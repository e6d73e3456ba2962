"""From an address to a complete folder."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import faulty_server, tiny_data
from helpers.faulty_server import Server
from helpers.tiny_data import MD5, TAR, Said, complete, left
from tta.data import catalogue, obtain
from tta.data.catalogue import DataSet, File, Part
from tta.data.layouts import Arrays, Images
from tta.data.obtain import get


def test_it_comes_checked_and_unpacked(tmp_path: Path, server: Server) -> None:
    said = Said()
    assert get("tiny", tmp_path / "new" / "root", say=said) == tmp_path / "new" / "root" / "TINY-C"
    assert complete(tmp_path / "new" / "root")
    assert f"md5 {MD5}, as published" in str(said)
    assert said[-1].startswith("TINY-C is complete in ")
    assert server.requests[0]["Accept-Encoding"] == "identity"


def test_what_is_complete_is_not_fetched_again(tmp_path: Path, server: Server) -> None:
    get("tiny", tmp_path)
    shutil.copytree(tmp_path / "TINY-C", tmp_path / "of_my_own")
    for root in (tmp_path, tmp_path / "TINY-C", tmp_path / "of_my_own"):
        said = Said()
        get("tiny", root, say=said)
        assert said[-1].startswith("TINY-C is complete already in ")
    assert len(server.requests) == 1


def test_a_read_only_folder_that_is_complete_needs_no_lock(tmp_path: Path, server: Server) -> None:
    get("tiny", tmp_path)
    (tmp_path / ".TINY-C.lock").unlink()
    get("tiny", tmp_path)
    assert left(tmp_path) == {"TINY-C"}
    assert not (tmp_path / ".TINY-C.lock").exists()


def test_a_folder_of_the_official_name_is_the_place_itself(tmp_path: Path, server: Server) -> None:
    assert get("tiny", tmp_path / "TINY-C") == tmp_path / "TINY-C"
    assert complete(tmp_path)


def test_nothing_is_unpacked_before_the_checksum(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obtain, "unpack", lambda *_: pytest.fail("unpacked"))
    server.faults = [faulty_server.other(TAR[:-1] + b"x")]
    with pytest.raises(OSError, match="expected md5"):
        get("tiny", tmp_path)


def test_a_mirror_must_have_the_same_file(tmp_path: Path, server: Server) -> None:
    server.files["wrong.tar"] = bytes(len(TAR))
    with pytest.raises(OSError, match="expected md5"):
        get("tiny", tmp_path, url=server.url("wrong.tar"))


@pytest.mark.parametrize("url", ["mirror.org/TINY-C.tar", "ftp://mirror.org/TINY-C.tar", "http://", "/data/TINY-C.tar"])
def test_an_address_that_is_none(tmp_path: Path, server: Server, url: str) -> None:
    with pytest.raises(ValueError, match=r"expected an address http://... or https://..., got"):
        get("tiny", tmp_path, url=url)


def test_full_disk_is_said_before_anything_is_downloaded(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 2 * len(TAR) - 1))
    message = (
        r"TINY-C does not fit: 266.2 kB are needed for .*, but \S+ has 266.2 kB free. Make room, or choose another"
    )
    with pytest.raises(OSError, match=message.replace("266.2", r"\d+.\d")):
        get("tiny", tmp_path)
    assert server.requests == []
    (tmp_path / "TINY-C.tar.part").write_bytes(TAR[:20_000])  # so much less is needed
    get("tiny", tmp_path)
    assert complete(tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_full_disk_where_only_the_server_knows_the_size(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 2 * len(TAR) - 1))
    with pytest.raises(OSError, match=r"TINY-C.tar does not fit"):
        get("tiny", tmp_path)
    assert left(tmp_path) == set()


def test_a_disk_that_fills_up_while_unpacking(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(obtain, "unpack", full)
        with pytest.raises(OSError, match=r"the disk is full .* What is downloaded is kept: make room"):
            get("tiny", tmp_path)
    assert left(tmp_path) == {"TINY-C.tar.part", "TINY-C.tar.part.json"}
    get("tiny", tmp_path)
    assert len(server.requests) == 1
    assert complete(tmp_path)


def test_keep_archive(tmp_path: Path, server: Server) -> None:
    get("tiny", tmp_path, keep_archive=True)
    assert left(tmp_path) == {"TINY-C", "TINY-C.tar"}
    assert (tmp_path / "TINY-C.tar").read_bytes() == TAR
    shutil.rmtree(tmp_path / "TINY-C")
    said = Said()
    get("tiny", tmp_path, say=said)
    assert "TINY-C.tar: taken from" in str(said)
    assert left(tmp_path) == {"TINY-C", "TINY-C.tar"}
    assert len(server.requests) == 1


def test_an_archive_of_ones_own_is_never_removed(tmp_path: Path, server: Server) -> None:
    (tmp_path / "TINY-C.tar").write_bytes(TAR[:-1])
    with pytest.raises(OSError, match=r"expected md5 .* Remove it, or move it away, to have it downloaded"):
        get("tiny", tmp_path)
    assert left(tmp_path) == {"TINY-C.tar"}


def test_what_is_missing_is_put_into_a_folder_that_is_there(tmp_path: Path, server: Server) -> None:
    folder = tmp_path / "TINY-C"
    get("tiny", tmp_path)
    (folder / "fog.npy").write_bytes((folder / "fog.npy").read_bytes()[:-1])
    (folder / "labels.npy").unlink()
    (folder / "clean.npy").write_bytes(b"of my own")
    get("tiny", tmp_path)
    assert (folder / "clean.npy").read_bytes() == b"of my own"
    (folder / "clean.npy").unlink()
    assert complete(tmp_path)


def test_a_folder_that_is_a_link_to_another_disk(tmp_path: Path, server: Server) -> None:
    (tmp_path / "big" / "TINY-C").mkdir(parents=True)
    (tmp_path / "TINY-C").symlink_to(tmp_path / "big" / "TINY-C")
    get("tiny", tmp_path)
    assert complete(tmp_path / "big")


def test_a_root_that_cannot_be_written(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file cannot be written .*: choose another folder with --root"):
        get("tiny", tmp_path / "file")


def test_files_that_are_no_archives(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = Arrays(("data.npy",), "labels.npy", (4, 32, 32, 3), 4)
    files = {"data.npy": tiny_data.npy(np.zeros((4, 32, 32, 3), np.uint8)), "labels.npy": tiny_data.npy(np.arange(4))}
    part = Part("v6", tuple(File(name, server.url(name)) for name in files), arrays)
    monkeypatch.setitem(catalogue.DATASETS, "two", DataSet("two", "Two", "TWO", (part,)))
    server.files = {**files, "labels.npy": tiny_data.npy(np.arange(5))}
    with pytest.raises(OSError, match=r"labels.npy: expected whole numbers \(4,\), got int64 \(5,\). It is removed"):
        get("two", tmp_path)
    assert not (tmp_path / "TWO").exists()
    server.files = files
    get("two", tmp_path, url=server.url(""), keep_archive=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "TWO").iterdir()} == files
    assert {file.name for file in tmp_path.iterdir()} == {"TWO", ".TWO.lock"}
    with pytest.raises(ValueError, match=r"--url is the address of one file, but data.npy, labels.npy are asked for"):
        get("two", tmp_path, url=server.url("data.npy"))


def test_a_folder_that_lacks_images_is_replaced(
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

"""Archives that are broken, or not to be trusted."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from helpers import tiny_data
from helpers.faulty_server import Server
from helpers.tiny_data import TAR, complete, left
from tta.data import catalogue
from tta.data.obtain import get
from tta.data.unpack import UnusableError, unpack

WRONG = gzip.compress(TAR)[:-8] + bytes(4) + gzip.compress(TAR)[-4:]  # its own checksum is another one


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> bytes:
    """An archive with one good file and one other member."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("TINY-C/good"))
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        tar.addfile(info)
    return file.getvalue()


@pytest.mark.parametrize(
    ("archive", "message"),
    {
        "parent": (member("../out"), r"its member '../out' would leave the folder"),
        "deep": (member("TINY-C/../../out"), r"its member 'TINY-C/../../out' would leave the folder"),
        "absolute": (member("/tmp/out"), r"its member '/tmp/out' would leave the folder"),
        "symlink": (member("TINY-C/x", tarfile.SYMTYPE, "/etc"), r"its member 'TINY-C/x' is a link to '/etc'"),
        "hard link": (member("TINY-C/x", tarfile.LNKTYPE, "../../out"), r"is a link to '../../out'"),
        "device": (member("TINY-C/x", tarfile.CHRTYPE), r"its member 'TINY-C/x' is a device"),
        "pipe": (member("TINY-C/x", tarfile.FIFOTYPE), r"its member 'TINY-C/x' is a device"),
    }.values(),
)
def test_members_that_leave_the_folder(tmp_path: Path, archive: bytes, message: str) -> None:
    (tmp_path / "a.tar").write_bytes(archive)
    (tmp_path / "in" / "new").mkdir(parents=True)
    with pytest.raises(UnusableError, match=rf"a.tar is not to be trusted: .*{message}"):
        unpack(tmp_path / "a.tar", tmp_path / "in" / "new")
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {
        "a.tar",
        "in/new/TINY-C/good",
    }


def test_a_hostile_archive_leaves_nothing_behind(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = member("../../out")
    server.files["TINY-C.tar"] = content
    monkeypatch.setitem(catalogue.DATASETS, "tiny", tiny_data.dataset(server.url("TINY-C.tar")))
    with pytest.raises(OSError, match=r"'../../out' would leave the folder.* It is removed: try again"):
        get("tiny", tmp_path / "root")
    assert left(tmp_path / "root") == set()
    assert left(tmp_path) == {"root"}


@pytest.mark.parametrize("length", [len(TAR) // 2, 40_000, 512 + 100, 100])
def test_a_truncated_archive_with_the_right_checksum(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    cut = TAR[:length]
    server.files["TINY-C.tar"] = cut
    tiny = tiny_data.dataset(server.url("TINY-C.tar"), length, tiny_data.md5(cut))
    monkeypatch.setitem(catalogue.DATASETS, "tiny", tiny)
    with pytest.raises(OSError, match=r"cannot be unpacked: it is truncated .*Its md5 is as published, .*it is kept"):
        get("tiny", tmp_path)
    assert left(tmp_path) == {"TINY-C.tar.part", "TINY-C.tar.part.json"}


def test_an_archive_that_ends_between_two_members(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = tiny_data.archive({name: data for name, data in tiny_data.contents().items() if name != "snow.npy"})
    server.files["TINY-C.tar"] = content
    monkeypatch.setitem(catalogue.DATASETS, "tiny", tiny_data.dataset(server.url("TINY-C.tar")))
    with pytest.raises(OSError, match=r"TINY-C.tar.part does not hold what it should: snow.npy: missing. It is re"):
        get("tiny", tmp_path)
    assert left(tmp_path) == set()


@pytest.mark.parametrize(
    "content", [b"", b"not a tar" * 100, gzip.compress(TAR)[:-1000], gzip.compress(TAR)[:-4], WRONG]
)
def test_what_is_no_archive_of_ones_own(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setitem(catalogue.DATASETS, "tiny", tiny_data.dataset(server.url("TINY-C.tar"), name="T.tar.gz"))
    (tmp_path / "T.tar.gz").write_bytes(content)
    with pytest.raises(OSError, match=r"cannot be unpacked: it is truncated or no tar archive .*Remove .*T.tar.gz, or"):
        get("tiny", tmp_path)
    assert (tmp_path / "T.tar.gz").read_bytes() == content
    assert left(tmp_path) == {"T.tar.gz"}


@pytest.mark.parametrize("folder", ["", "TINY-C/", "./", "mirror/TINY-C/"])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_folders_around_it_do_not_matter(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, folder: str, mode: str
) -> None:
    name = "t.tar.gz" if mode == "w:gz" else "t.tar"
    server.files["t"] = tiny_data.archive(folder=folder, mode=mode)
    monkeypatch.setitem(catalogue.DATASETS, "tiny", tiny_data.dataset(server.url("t"), name=name))
    get("tiny", tmp_path)
    assert complete(tmp_path)

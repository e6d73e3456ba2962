"""Archives that are broken, or not to be trusted."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from helpers import tiny_data
from helpers.errors import raises_naming
from helpers.faulty_server import Server
from helpers.tiny_data import TAR, complete, left
from tta.data import catalogue
from tta.data.obtain import get
from tta.data.unpack import UnusableError, unpack

GZIPPED = gzip.compress(TAR)
WRONG_CRC = GZIPPED[:-8] + bytes(4) + GZIPPED[-4:]


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
    ("name", "kind", "target"),
    [
        ("../out", tarfile.REGTYPE, ""),
        ("TINY-C/../../out", tarfile.REGTYPE, ""),
        ("/tmp/out", tarfile.REGTYPE, ""),
        ("TINY-C/x", tarfile.SYMTYPE, "/etc"),
        ("TINY-C/x", tarfile.LNKTYPE, "../../out"),
        ("TINY-C/x", tarfile.CHRTYPE, ""),
    ],
)
def test_unpack__refuses_hostile_members(tmp_path: Path, name: str, kind: bytes, target: str) -> None:
    (tmp_path / "a.tar").write_bytes(member(name, kind, target))
    (tmp_path / "in" / "new").mkdir(parents=True)
    with raises_naming(UnusableError, "a.tar", repr(name), target):
        unpack(tmp_path / "a.tar", tmp_path / "in" / "new")
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir()}
    assert files == {"a.tar", "in/new/TINY-C/good"}


def test_get__hostile_archive_leaves_nothing(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["TINY-C.tar"] = member("../../out")
    monkeypatch.setitem(catalogue.DATASETS, "tiny", tiny_data.dataset(server.url("TINY-C.tar")))
    with raises_naming(OSError, "'../../out'"):
        get("tiny", tmp_path / "root")
    assert left(tmp_path / "root") == set()
    assert left(tmp_path) == {"root"}


@pytest.mark.parametrize("length", [len(TAR) // 2, 512 + 100, 100])
def test_get__truncated_with_right_md5_is_kept(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """Another download would be the same."""
    cut = TAR[:length]
    server.files["TINY-C.tar"] = cut
    tiny = tiny_data.dataset(server.url("TINY-C.tar"), length, tiny_data.md5(cut))
    monkeypatch.setitem(catalogue.DATASETS, "tiny", tiny)
    with raises_naming(OSError, "TINY-C.tar.part"):
        get("tiny", tmp_path)
    assert left(tmp_path) == {"TINY-C.tar.part", "TINY-C.tar.part.json"}


def test_get__archive_without_a_file_is_removed(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = tiny_data.archive({name: data for name, data in tiny_data.contents().items() if name != "snow.npy"})
    server.files["TINY-C.tar"] = content
    monkeypatch.setitem(catalogue.DATASETS, "tiny", tiny_data.dataset(server.url("TINY-C.tar")))
    with raises_naming(OSError, "TINY-C.tar.part", "snow.npy"):
        get("tiny", tmp_path)
    assert left(tmp_path) == set()


@pytest.mark.parametrize("content", [b"", b"not a tar" * 100, GZIPPED[:-1000], GZIPPED[:-4], WRONG_CRC])
def test_get__own_file_that_is_no_archive_is_kept(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setitem(catalogue.DATASETS, "tiny", tiny_data.dataset(server.url("TINY-C.tar"), name="T.tar.gz"))
    (tmp_path / "T.tar.gz").write_bytes(content)
    with raises_naming(OSError, tmp_path / "T.tar.gz"):
        get("tiny", tmp_path)
    assert (tmp_path / "T.tar.gz").read_bytes() == content
    assert left(tmp_path) == {"T.tar.gz"}


@pytest.mark.parametrize(("folder", "mode"), [("", "w:gz"), ("./", "w"), ("mirror/TINY-C/", "w:gz")])
def test_get__folders_around_it_do_not_matter(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, folder: str, mode: str
) -> None:
    name = "t.tar.gz" if mode == "w:gz" else "t.tar"
    server.files["t"] = tiny_data.archive(folder=folder, mode=mode)
    monkeypatch.setitem(catalogue.DATASETS, "tiny", tiny_data.dataset(server.url("t"), name=name))
    get("tiny", tmp_path)
    assert complete(tmp_path)

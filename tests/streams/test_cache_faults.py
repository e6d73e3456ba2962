"""What goes wrong with a cache, by itself or in other processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import small_tree
from helpers.forks import forked
from helpers.numbered_images import domain
from helpers.small_tree import WNIDS, N, caches, make, read, same
from tta.streams import Stream
from tta.streams import cache as module
from tta.streams.files import FileImages
from tta.streams.imagenet import imagenet_c


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_tree.tree(tmp_path / "data")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def truncate(cache: Path) -> None:
    os.truncate(cache / "pixels.bin", 100)


def lose(cache: Path) -> None:
    (cache / "pixels.bin").unlink()


def blank(cache: Path) -> None:
    """What a crash of the machine may leave of a file that was not on the disk yet."""
    (cache / "pixels.bin").write_bytes(bytes(N * 3 * 32**2))


def spoil_header(cache: Path) -> None:
    (cache / "cache.json").write_text('{"identity"')


def exchange_header(cache: Path) -> None:
    header = json.loads((cache / "cache.json").read_text())
    (cache / "cache.json").write_text(json.dumps({**header, "identity": "another"}))


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (truncate, "has 100 bytes instead of 27648"),
        (lose, "cannot be read (FileNotFoundError: "),
        (blank, "has other pixels than the images that it was made of"),
        (spoil_header, "cannot be read (JSONDecodeError: "),
        (exchange_header, "is of other images"),
    ],
)
def test_a_wrong_cache_is_made_again(
    root: Path, folder: Path, spoil: Callable[[Path], None], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make(root, folder).prepare()
    (fog, _) = caches(folder)
    spoil(fog)
    capsys.readouterr()
    assert same(read(make(root, folder)), read(make(root)))
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"stream.cache: {fog} {what}")
    assert first.endswith(": it is made again")
    assert second.startswith("stream.cache: making the pixels of 9 images, once")


def test_unreadable_images_are_skipped_and_named_as_without_a_cache(root: Path, folder: Path) -> None:
    (root / "fog" / "5" / WNIDS[0] / "3.JPEG").write_bytes(b"no image")
    (root / "fog" / "5" / WNIDS[1] / "1.JPEG").unlink()
    (root / "fog" / "5" / WNIDS[1] / "1.JPEG").symlink_to("nowhere")
    expected = read(make(root, on_error="skip"))
    for _ in range(2):
        cached = make(root, folder, on_error="skip")
        assert same(read(cached), expected)
    assert [domain.load.whole for domain in cached._sources] == [False, True]  # type: ignore[attr-defined]
    for cache in (folder, folder.with_name("new")):
        with pytest.raises(ValueError, match=r"unreadable image\(s\) in a batch of .*stream.on_error=skip"):
            read(make(root, cache))
    assert not caches(folder.with_name("new"))


def test_an_image_that_could_not_be_read_once_is_tried_again(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tta.streams.files import FileImages

    decode = FileImages._decode

    def fail(self: FileImages, path: Path, pixels: np.ndarray) -> None:
        if path.name == "5.JPEG":
            raise OSError("the server is away")
        decode(self, path, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(FileImages, "_decode", fail)
        make(root, folder, on_error="skip").prepare()
    assert same(read(make(root, folder, on_error="skip")), read(make(root)))


def test_no_room(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(10**9, 0, 100_000_000 + 55_295))
    with pytest.raises(
        OSError, match=r"stream.cache: 55.3 kB are needed .*cache has 100.1 MB free: make room, or "
    ) as e:
        make(root, folder).prepare()
    assert "stream.cache=<folder>, fewer images with stream.limit, or stream.cache=false" in str(e.value)
    assert not folder.exists()
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(10**9, 0, 100_000_000 + 55_296))
    make(root, folder).prepare()


def test_a_disk_that_is_full_in_the_middle_leaves_nothing(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(module._Chunks):
        def __getitem__(self, number: int) -> Any:
            return OSError(28, "No space left on device") if number else super().__getitem__(number)

    monkeypatch.setattr(module, "CHUNK", 4)
    monkeypatch.setattr(module, "_Chunks", Full)
    with pytest.raises(
        OSError, match=r"stream.cache: .*fog-5-\w+ cannot be written .*No space left.*stream.cache=false"
    ):
        make(root, folder).prepare()
    assert not caches(folder)


def test_a_folder_that_cannot_be_written(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"stream.cache: .* cannot be written .*choose another folder with stream.cache="):
        make(root, tmp_path / "file" / "cache").prepare()


@pytest.mark.parametrize("value", [None, 1, "", 0.5, ["a"]], ids=repr)
def test_wrong_value(root: Path, value: Any) -> None:
    with pytest.raises(ValueError, match=r"stream.cache must be true, false or a folder, got "):
        imagenet_c(str(root), corruptions="fog", size=32, cache=value)


def test_images_that_cannot_be_cached() -> None:
    with pytest.raises(ValueError, match=r"stream.cache: the images of fog-5 cannot be cached: .*stream.cache=false"):
        Stream([domain()], 7, 5, cache=True).prepare()


def start(root: Path, folder: Path, gate: Path) -> subprocess.Popen[str]:
    """Start a process that makes caches, and goes on to the fourth image when ``gate`` is there."""

    def make_caches() -> None:
        asked: list[Path] = []
        decode = FileImages._decode

        def slowly(self: FileImages, path: Path, pixels: Any) -> None:
            print("decoded", flush=True)
            asked.append(path)
            while len(asked) > 3 and not gate.exists():
                time.sleep(0.01)
            decode(self, path, pixels)

        FileImages._decode = slowly  # type: ignore[method-assign]
        imagenet_c(str(root), ["fog", "snow"], size=32, workers=0, cache=str(folder)).prepare()
        print("done", flush=True)

    return forked(make_caches, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_make_it_once(root: Path, folder: Path) -> None:
    gate = root / "gate"
    first = start(root, folder, gate)
    assert first.stdout is not None
    assert first.stdout.readline() == "decoded\n"
    second = start(root, folder, gate)
    assert second.stderr is not None
    second.stderr.readline()
    assert "another process is making " in (line := second.stderr.readline())
    assert line.endswith(": waiting until it has done\n")
    gate.touch()
    (told_first, _), (told_second, _) = first.communicate(timeout=60), second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert told_first.splitlines()[-1] == told_second.splitlines()[-1] == "done"
    # Who finds a cache made by the other compares a few of its images with their files.
    decoded = 1 + told_first.count("decoded") + told_second.count("decoded")
    assert 2 * N <= decoded <= 2 * (N + module.COMPARED)
    assert len(caches(folder)) == 2
    assert same(read(make(root, folder)), read(make(root)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_in_the_middle(root: Path, folder: Path, number: signal.Signals) -> None:
    process = start(root, folder, root / "gate")
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline() == "decoded\n"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not [path for path in caches(folder) if not path.name.startswith(".")]
    assert same(read(make(root, folder)), read(make(root)))
    assert len(caches(folder)) == 2  # what was left is cleared away

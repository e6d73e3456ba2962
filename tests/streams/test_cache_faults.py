"""What goes wrong with a cache, by itself or in other processes."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.errors import assert_names, raises_naming
from helpers.numbered_images import domain
from helpers.small_tree import WNIDS, N, caches, make, read, same
from tta.streams import Domain, Stream, cache_writer
from tta.streams import cache as module
from tta.streams import files as files_module
from tta.streams.files import FileImages
from tta.streams.types import LoadedImages


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
    ("spoil", "named"),
    [
        (truncate, (100, N * 3 * 32**2)),
        (lose, ("FileNotFoundError",)),
        (blank, ()),
        (spoil_header, ("JSONDecodeError",)),
        (exchange_header, ()),
    ],
)
def test_spoilt_cache__is_made_again_and_named(
    small_files: Path,
    folder: Path,
    spoil: Callable[[Path], None],
    named: tuple[Any, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(small_files, folder).prepare()
    (fog, _) = caches(folder)
    spoil(fog)
    capsys.readouterr()
    assert same(read(make(small_files, folder)), read(make(small_files)))
    (problem, making) = capsys.readouterr().err.splitlines()
    assert_names(problem, "stream.cache", fog, *named)
    assert_names(making, N)  # the intact one is kept


def test_unreadable_images__are_skipped_as_uncached(small_files: Path, folder: Path) -> None:
    (small_files / "fog" / "5" / WNIDS[0] / "3.JPEG").write_bytes(b"no image")
    (small_files / "fog" / "5" / WNIDS[1] / "1.JPEG").unlink()
    (small_files / "fog" / "5" / WNIDS[1] / "1.JPEG").symlink_to("nowhere")
    expected = read(make(small_files, on_error="skip"))
    assert sum(len(batch.skipped) for batch in expected) == 2
    for _ in range(2):
        assert same(read(make(small_files, folder, on_error="skip")), expected)
    new = folder.with_name("new")
    for cache in (folder, new):
        with raises_naming(ValueError, "3.JPEG", "stream.on_error=skip"):
            read(make(small_files, cache))
    assert not caches(new)


def test_unreadable_image__is_tried_again(small_files: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = files_module.read_rgb

    def fail(path: Path, *arguments: Any) -> np.ndarray:
        if path.name == "5.JPEG":
            raise OSError("the server is away")
        return decode(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(files_module, "read_rgb", fail)
        make(small_files, folder, on_error="skip").prepare()
    assert same(read(make(small_files, folder, on_error="skip")), read(make(small_files)))


def test_cache__needs_room_for_its_pixels(small_files: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    needed = 2 * N * 3 * 32**2 + cache_writer.MARGIN
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, needed - 1))
    with raises_naming(OSError, "55.3 kB", folder, "100.1 MB", "stream.cache", "stream.limit"):
        make(small_files, folder).prepare()
    assert not folder.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, needed))
    make(small_files, folder).prepare()


class Stopping(FileImages):
    """Files of images that cannot be read, or written, after the first few."""

    def __init__(self, root: Path, error: BaseException) -> None:
        super().__init__(sorted((root / "fog" / "5").glob("*/*")), 32, skip=False)
        self.error = error
        self.calls = 0

    def __call__(self, index: torch.Tensor) -> LoadedImages:
        self.calls += 1
        if self.calls > 1:
            raise self.error
        return super().__call__(index)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_cache__cut_off_while_made_leaves_nothing(
    small_files: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(cache_writer, "CHUNK", 4)
    images = Stopping(small_files, error)
    stream = Stream([Domain("fog", 5, torch.zeros(N, dtype=torch.int64), images)], 1, 4, cache=str(folder))
    with pytest.raises(type(error)) as caught:
        stream.prepare()
    assert images.calls == 2
    assert not caches(folder)
    if isinstance(error, OSError):
        assert_names(str(caught.value), "stream.cache", folder, error, "stream.cache=false")


def test_cache__rejects_what_cannot_be_cached(small_files: Path, tmp_path: Path) -> None:
    for value in (None, 1, "", ["a"]):
        with raises_naming(ValueError, "stream.cache", repr(value)):
            make(small_files, cache=value)  # type: ignore[arg-type]
    (tmp_path / "file").write_text("no folder")
    with raises_naming(OSError, "stream.cache", tmp_path / "file" / "cache"):
        make(small_files, tmp_path / "file" / "cache").prepare()
    with raises_naming(ValueError, "stream.cache=false", "fog-5"):
        Stream([domain()], 7, 5, cache=True).prepare()


def test_cache__is_made_once_by_two_at_a_time(small_files: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads stand for processes: each opens the lock by itself."""
    monkeypatch.setattr(sys, "stderr", told := io.StringIO())
    begun, go_on = threading.Event(), threading.Event()
    asked: list[int] = []

    class Slow(FileImages):
        def __call__(self, index: torch.Tensor) -> LoadedImages:
            asked.extend(index.tolist())
            begun.set()
            assert go_on.wait(60)
            return super().__call__(index)

    def open_it() -> LoadedImages:
        images = Slow(sorted((small_files / "fog" / "5").glob("*/*")), 32, skip=False)
        domains = [Domain("fog", 5, torch.zeros(N, dtype=torch.int64), images)]
        (cached,) = module.open_cached(domains, [torch.arange(N)], folder, workers=0)
        return cached.load(torch.arange(N))

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(open_it)
        assert begun.wait(60)
        second = pool.submit(open_it)
        while "fog-5-" not in told.getvalue():  # the second tells what it waits for
            assert not second.done()
            time.sleep(0.01)
        go_on.set()
        assert torch.equal(first.result(60).images, second.result(60).images)
    assert len(asked) == N + module.COMPARED  # the second compares a few images with their files
    assert len(caches(folder)) == 1


@pytest.mark.slow
def test_cache__killed_while_made_is_made_anew(small_files: Path, folder: Path) -> None:
    program = f"""
import os, signal
from tta.streams import files
from tta.streams.datasets.imagenet import imagenet_c

read, asked = files.read_rgb, []

def read_rgb(*arguments):
    asked.append(arguments)
    if len(asked) > 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(*arguments)

files.read_rgb = read_rgb
imagenet_c({str(small_files)!r}, ["fog", "snow"], size=32, workers=0, cache={str(folder)!r}).prepare()
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == -signal.SIGKILL
    (left,) = caches(folder)
    assert left.name.startswith(".")
    assert same(read(make(small_files, folder)), read(make(small_files)))
    assert len(caches(folder)) == 2  # what was left is cleared away

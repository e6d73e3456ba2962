"""How a decoded cache is made: chunk by chunk, by several processes, under a lock, and whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tta.data.progress import bar, in_bytes
from tta.streams.loader import identity_collate
from tta.utils.paths import atomic_folder, folder_lock

if TYPE_CHECKING:
    from tta.streams.cache import StreamCache

CHUNK = 64
"""Images that a worker decodes at once."""

MARGIN = 100_000_000  # bytes that are to stay free
Done = tuple[list[int], bool] | Exception
"""Of a chunk: the places of the images that were read, and whether channels come first; or what went wrong."""


def make_caches(folder: Path, wanting: Sequence[tuple[StreamCache, str]], workers: int) -> None:
    """Make caches that are missing, or have the problem that is given.

    Raises:
        ValueError: if an image cannot be read.
        OSError: if a cache cannot be written, or there is no room for it.
    """
    for cache, problem in wanting:
        if problem:
            _say(f"{cache.path} {problem}: it is made again")
    needed, images = sum(cache.bytes for cache, _ in wanting), sum(len(cache.index) for cache, _ in wanting)
    _refuse_full(folder, needed)
    _say(f"making the pixels of {images} images, once: {in_bytes(needed)} in {folder}")
    done = 0

    def advance(bytes_more: int) -> None:
        nonlocal done
        done += bytes_more
        moved(done, needed)

    with bar("stream.cache") as moved:
        for cache, _ in wanting:
            _make(cache, workers, advance)


def _make(cache: StreamCache, workers: int, advance: Callable[[int], None]) -> None:
    """Make a cache, unless another process has just made it."""

    def wait(lock: Path) -> None:
        _say(f"another process is making {cache.path} (it holds {lock}): waiting until it has done")

    try:
        with folder_lock(cache.path, wait):
            if cache.problem() is None:
                return
            for left in [cache.path, *cache.folder.glob(f".{cache.path.name}-*")]:  # of one that was killed
                shutil.rmtree(left, ignore_errors=True)
            with atomic_folder(cache.path) as folder:
                _fill(cache, folder, workers, advance)
    except OSError as error:
        raise OSError(
            f"stream.cache: {cache.path} cannot be written ({error}); choose another folder with "
            "stream.cache=<folder>, or stream.cache=false"
        ) from error


def _fill(cache: StreamCache, folder: Path, workers: int, advance: Callable[[int], None]) -> None:
    file = folder / "pixels.bin"
    kept: list[int] = []
    layouts: set[bool] = set()
    with file.open("wb") as pixels:
        pixels.truncate(cache.bytes)
        chunks = _Chunks(cache.domain.load, cache.index, file, 3 * cache.size**2)
        generator = torch.Generator()  # or it would draw from the global one, which is the method's
        for done in DataLoader(
            chunks, batch_size=None, num_workers=workers, collate_fn=identity_collate, generator=generator
        ):
            if isinstance(done, Exception):
                raise done
            kept += done[0]
            layouts |= {done[1]} if done[0] else set()
            advance(len(done[0]) * 3 * cache.size**2)
        os.fsync(pixels.fileno())
    missing = sorted(set(range(len(cache.index))) - set(kept))
    header = {"identity": cache.identity, "channels_first": layouts == {True}, "missing": missing}
    with (folder / "cache.json").open("w") as text:
        json.dump({**header, "domain": str(cache.domain), "made_of": cache.made_of}, text, indent=1)
        text.flush()
        os.fsync(text.fileno())


class _Chunks(Dataset[Done]):
    """Chunks of images that are decoded, and written to their place in the file, when they are asked for."""

    def __init__(self, load: Any, index: Tensor, file: Path, bytes_each: int) -> None:
        self.load = load
        self.class_ids = torch.arange(len(index)).split(CHUNK)
        self.index = index
        self.file = file
        self.bytes_each = bytes_each

    def __len__(self) -> int:
        return len(self.class_ids)

    def __getitem__(self, number: int) -> Done:
        places = self.class_ids[number]
        try:
            images, kept, _ = self.load(self.index[places])
            channels_first = images.is_contiguous()
            array = (images if channels_first else images.permute(0, 2, 3, 1)).contiguous().numpy()
            if array[:1].nbytes not in (0, self.bytes_each):
                raise ValueError(f"stream.cache: expected images of {self.bytes_each} bytes, got {images.shape[1:]}")
            with self.file.open("r+b") as file:  # written, not mapped: a full disk is an error that can be caught
                for place, image in zip(places[kept].tolist(), array, strict=True):
                    file.seek(place * self.bytes_each)
                    file.write(image.data)
        except (OSError, ValueError) as error:
            return error  # raised in a worker, its message would be the text of a whole trace
        return places[kept].tolist(), channels_first


def _refuse_full(folder: Path, needed: int) -> None:
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    if needed + MARGIN > free:
        raise OSError(
            f"stream.cache: {in_bytes(needed)} are needed for the pixels, but {folder} has {in_bytes(free)} free: make "
            "room, or choose another folder with stream.cache=<folder>, fewer images with stream.limit, or "
            "stream.cache=false"
        )


def _say(text: str) -> None:
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(f"stream.cache: {text}", markup=False)

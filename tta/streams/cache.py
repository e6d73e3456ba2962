"""The decoded cache: pixels of a domain's images on disk, made once and memory-mapped from then on.

A cache is a folder with ``pixels.bin``, uint8, image after image as the method sees them, and ``cache.json``, which
says what they were made of. It gets its name when it is complete, and not before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tta.data.progress import bar, in_bytes
from tta.streams.arrays import ArrayImages, CachedImages
from tta.streams.loader import identity_collate
from tta.streams.types import CacheableImages, DerivedImages, Domain
from tta.utils.paths import atomic_folder, cache_dir, folder_lock

FORMAT = 1
CHUNK = 64
"""Images that a worker decodes at once."""

MARGIN = 100_000_000  # bytes that are to stay free
COMPARED = 4
"""Images of a cache that are read from their source too when it is opened, and compared."""

Done = tuple[list[int], bool] | Exception
"""Of a chunk: the places of the images that were read, and whether channels come first; or what went wrong."""


def check_cache(value: Any) -> bool | str:
    """Return ``stream.cache`` if it is true, false or a folder; else raise ``ValueError`` that says so."""
    if isinstance(value, bool) or (isinstance(value, str) and value):
        return value
    raise ValueError(f"stream.cache must be true, false or a folder, got {value!r}")


def cache_folder(cache: bool | str) -> Path:
    """Folder of the caches: the one given, or one in the cache of this program."""
    return Path(cache).expanduser() if isinstance(cache, str) else cache_dir() / "streams"


def open_cached(domains: Sequence[Domain], chosen: Sequence[Tensor], folder: Path, workers: int) -> list[Domain]:
    """Give the same domains, read from their caches; those that are missing or wrong are made first.

    Two processes that need a cache at once make it once; the second waits. What is in arrays already is left as it is.

    Args:
        domains: whose images are cached.
        chosen: int64 (n,) for each domain: the samples that a cache is made of.
        folder: of the caches.
        workers: processes that make them; 0 makes them in this one.

    Raises:
        ValueError: if an image cannot be read (and is not to be skipped), or images cannot be cached.
        OSError: if a cache cannot be written, or there is no room for it.
    """
    contents: dict[tuple[int, bytes], str] = {}
    caches: dict[tuple[str, int], _Cache] = {}
    for domain, index in zip(domains, chosen, strict=True):
        if not isinstance(domain.load, ArrayImages):
            caches[_key(domain)] = _Cache(folder, domain, index, _identity(domain, index, contents))
    problems = {cache.path: (cache, cache.problem()) for cache in caches.values()}
    wanting = [(cache, problem) for cache, problem in problems.values() if problem is not None]
    if wanting:
        _make_all(folder, wanting, workers)
    images = {key: cache.open() for key, cache in caches.items()}
    return [replace(domain, load=images.get(_key(domain), domain.load)) for domain in domains]


def _key(domain: Domain) -> tuple[str, int]:
    return str(domain), id(domain.load)


@dataclass(frozen=True, eq=False)
class _Cache:
    """The cache of the chosen images of a domain, there or not."""

    folder: Path
    domain: Domain
    index: Tensor
    made_of: Mapping[str, Any]

    @cached_property
    def identity(self) -> str:
        return hashlib.sha256(json.dumps(self.made_of, sort_keys=True).encode()).hexdigest()

    @property
    def path(self) -> Path:
        return self.folder / f"{self.domain}-{self.identity[:16]}"

    @property
    def size(self) -> int:
        return self.made_of["size"]

    @property
    def bytes(self) -> int:
        return len(self.index) * 3 * self.size**2

    def problem(self) -> str | None:
        """Say what is wrong with it; nothing if it is not there, ``None`` if nothing is."""
        if not self.path.is_dir():
            return ""
        try:
            header = json.loads((self.path / "cache.json").read_text())
            if header["identity"] != self.identity:
                return "is of other images"
            there = (self.path / "pixels.bin").stat().st_size
            if there != self.bytes:
                return f"has {there} bytes instead of {self.bytes}"
            return None if self._agrees(self.open()) else "has other pixels than the images that it was made of"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"cannot be read ({type(error).__name__}: {error})"

    def open(self) -> CachedImages:
        """Map it into memory."""
        header = json.loads((self.path / "cache.json").read_text())
        first = header["channels_first"]
        shape = (3, self.size, self.size) if first else (self.size, self.size, 3)
        pixels = np.memmap(self.path / "pixels.bin", np.uint8, "r", shape=(len(self.index), *shape))
        places = torch.arange(len(self.index))
        places[header["missing"]] = -1
        rows = torch.full((len(self.domain.labels),), -1)
        rows[self.index] = places
        return CachedImages(pixels, first, rows, self.index, self.domain.load)

    def _agrees(self, cached: CachedImages) -> bool:
        """Compare a few images with their source: what decodes them may be another version by now."""
        known = self.index[cached.rows[self.index] >= 0]
        if not len(known):
            return True
        few = known[torch.arange(min(COMPARED, len(known))) * len(known) // COMPARED]
        theirs, ours = self.domain.load(few).images, cached(few).images
        return torch.equal(theirs, ours) and theirs.stride() == ours.stride()


def _identity(domain: Domain, index: Tensor, contents: dict[tuple[int, bytes], str]) -> dict[str, Any]:
    """Say what the pixels of these images follow from, wherever those are."""
    load, how = domain.load, []
    while isinstance(load, DerivedImages):
        how.append(dict(load.recipe()))
        load = load.clean
    if not isinstance(load, CacheableImages):
        raise ValueError(
            f"stream.cache: the images of {domain} cannot be cached: what reads them has no size or content(index); "
            "choose stream.cache=false"
        )
    chosen = hashlib.sha256(index.numpy().tobytes())
    key = id(load), chosen.digest()
    if key not in contents:  # the files of all corruptions of a clean data set are the same
        contents[key] = load.cache_key(index)
    return {
        "format": FORMAT,
        "images": len(index),
        "index": chosen.hexdigest(),
        "size": load.size,
        "content": contents[key],
        "made": how,
    }


def _make_all(folder: Path, wanting: Sequence[tuple[_Cache, str]], workers: int) -> None:
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


def _make(cache: _Cache, workers: int, advance: Callable[[int], None]) -> None:
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


def _fill(cache: _Cache, folder: Path, workers: int, advance: Callable[[int], None]) -> None:
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

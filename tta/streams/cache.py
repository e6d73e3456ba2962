"""The decoded cache: pixels of a domain's images on disk, made once and memory-mapped from then on.

A cache is a folder with ``pixels.bin``, uint8, image after image as the method sees them, and ``cache.json``, which
says what they were made of. It gets its name when it is complete, and not before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tta.streams.arrays import ArrayImages, CachedImages
from tta.streams.cache_writer import make_caches
from tta.streams.types import CacheableImages, DerivedImages, Domain
from tta.utils.paths import cache_dir

FORMAT = 1
COMPARED = 4
"""Images of a cache that are read from their source too when it is opened, and compared."""


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
    caches: dict[tuple[str, int], StreamCache] = {}
    for domain, index in zip(domains, chosen, strict=True):
        if not isinstance(domain.load, ArrayImages):
            caches[_key(domain)] = StreamCache(folder, domain, index, _identity(domain, index, contents))
    problems = {cache.path: (cache, cache.problem()) for cache in caches.values()}
    wanting = [(cache, problem) for cache, problem in problems.values() if problem is not None]
    if wanting:
        make_caches(folder, wanting, workers)
    images = {key: cache.open() for key, cache in caches.items()}
    return [replace(domain, load=images.get(_key(domain), domain.load)) for domain in domains]


def _key(domain: Domain) -> tuple[str, int]:
    return str(domain), id(domain.load)


@dataclass(frozen=True, eq=False)
class StreamCache:
    """The cache of the chosen images of a domain, there or not."""

    folder: Path
    domain: Domain
    index: Tensor
    made_of: Mapping[str, Any]

    @cached_property
    def identity(self) -> str:
        """Hash of what the pixels follow from."""
        return hashlib.sha256(json.dumps(self.made_of, sort_keys=True).encode()).hexdigest()

    @property
    def path(self) -> Path:
        """Folder of the cache."""
        return self.folder / f"{self.domain}-{self.identity[:16]}"

    @property
    def size(self) -> int:
        """Height and width of an image, in pixels."""
        return self.made_of["size"]

    @property
    def bytes(self) -> int:
        """Bytes of all pixels."""
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

"""Streams and backbones that the jobs of a sweep in one process share: built once, and used by all that ask.

A method copies the backbone it is given and a run only reads its stream, so that a job gives the same result whether
or not it has them to itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from tta.config.instantiate import build, plain

if TYPE_CHECKING:
    import torch

    from tta.models import Backbone
    from tta.streams import Stream

T = TypeVar("T")

MAX_ENTRIES = 2
"""Streams, and backbones, that are kept: the next job mostly wants those of the last; more would fill the memory."""


class ComponentCache:
    """The streams and backbones that were used last, by what they were built from."""

    def __init__(self) -> None:
        self._streams: dict[str, Stream] = {}
        self._backbones: dict[str, Backbone] = {}

    def stream(self, config: DictConfig) -> Stream:
        """Return the stream of a configuration, built if need be."""
        from tta.streams import Stream

        key = json.dumps(plain(config.stream), sort_keys=True)
        return _get(self._streams, [key], lambda: build(config, "stream", Stream), lambda _: key)

    def backbone(self, config: DictConfig, stream: Stream, device: torch.device) -> Backbone:
        """Return the backbone of a configuration, for the classes of a stream and on a device, built if need be."""
        from tta.models import Backbone
        from tta.utils.devices import to_device

        def make() -> Backbone:
            backbone = build(config, "model", Backbone)
            backbone.match_classes(stream.num_classes, stream.classes)
            return to_device(backbone, device)

        classes = stream.classes and [*stream.classes.class_ids.tolist(), stream.classes.num_source_classes]
        key = json.dumps([plain(config.model), str(device), stream.num_classes, classes], sort_keys=True)
        seeded = f"{key} seed {config.seed}"  # random weights depend on the seed of the run, those of a file do not
        return _get(self._backbones, [key, seeded], make, lambda made: seeded if made.has_random_weights else key)


def _get(entries: dict[str, T], keys: list[str], make: Callable[[], T], key_of: Callable[[T], str]) -> T:
    """Return the entry under one of ``keys``; if there is none, make it in place of the one unused for longest."""
    found = next((key for key in keys if key in entries), None)
    if found is not None:
        entry = entries.pop(found)
    else:
        while len(entries) >= MAX_ENTRIES:
            del entries[next(iter(entries))]  # before the new one needs its memory
        entry = make()
        found = key_of(entry)
    entries[found] = entry  # at the end: the first is the one unused for longest
    return entry


def component_cache() -> ComponentCache:
    """Return the cache of this job's sweep in this process; a new one for a run by itself."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return ComponentCache()
    return _cache_for_sweep(os.path.abspath(HydraConfig.get().sweep.dir))


@lru_cache(maxsize=1)
def _cache_for_sweep(directory: str) -> ComponentCache:
    """Return the cache of the sweep with this directory; that of the sweep before is dropped."""
    return ComponentCache()

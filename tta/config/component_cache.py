"""Parts that the jobs of a sweep in one process have in common: made once, and given to all that ask.

A backbone is never altered by the methods that are given it, a stream never by the runs that read it, so that a job
cannot tell whether it has them to itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

    from tta.models import Backbone
    from tta.streams import Stream

T = TypeVar("T")

MAX_ENTRIES = 2
"""Parts of a kind that are kept: a sweep's next job mostly wants those of the last, and more would fill the memory."""


class ComponentCache:
    """The last parts that were made, of each kind, by what they were made of."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[Hashable, Any]] = {}

    def stream(self, node: Any, make: Callable[[], Stream]) -> Stream:
        """Give the stream that a node of the configuration describes."""
        key = _text(node)
        return self.get("stream", (key,), make, lambda _: key)

    def backbone(
        self, node: Any, stream: Stream, device: torch.device, seed: int, make: Callable[[], Backbone]
    ) -> Backbone:
        """Give the backbone that a node describes, for the classes of a stream.

        Args:
            node: plain containers.
            stream: tells the classes.
            device: where the backbone is to be.
            seed: of the run, for weights that hang on it.
            make: makes it, for these classes and on this device.
        """
        part = stream.classes and (*stream.classes.class_ids.tolist(), stream.classes.num_source_classes)
        same = (_text(node), str(device), stream.num_classes, part)
        drawn = (*same, seed)
        return self.get(
            "backbone", (same, drawn), make, lambda backbone: drawn if backbone.has_random_weights else same
        )

    def get(self, kind: str, keys: tuple[Hashable, ...], make: Callable[[], T], key: Callable[[T], Hashable]) -> T:
        """Give the part that is kept under one of these keys, or make it.

        Args:
            kind: of the part; each kind has its own room.
            keys: under any of which it may be kept.
            make: makes it.
            key: chooses, knowing the part, under which of them it is kept.
        """
        kept = self._parts.setdefault(kind, {})
        found = next((key for key in keys if key in kept), None)
        if found is not None:
            part = kept.pop(found)  # and to the end: the first is the one that was not wanted for longest
        else:
            while len(kept) >= MAX_ENTRIES:
                del kept[next(iter(kept))]  # before the new one needs its room
            part = make()
            found = key(part)
        kept[found] = part
        return part


def _text(node: Any) -> str:
    return json.dumps(node, sort_keys=True)


@lru_cache(maxsize=1)
def cache_for_sweep(sweep: str) -> ComponentCache:
    """Give the parts that the jobs of one sweep share, by its directory; those of the sweep before are let go."""
    return ComponentCache()

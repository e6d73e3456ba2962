"""Category-balanced sampling with timeliness and uncertainty (CSTU), of RoTTA (arXiv:2303.13899, algorithm 1)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class MemoryItem:
    """What the memory knows of an image."""

    label: int  # the class predicted
    uncertainty: float  # entropy of the prediction, nats
    age: int  # images offered since this one, itself included


class CSTU:
    """Decides which of the images that come one after another are held, at most ``capacity`` of them.

    A class that holds its share, ``capacity / classes``, or more, gets no further place: its worst image may give way
    to the new one. A class with less takes a free place, or that of the worst image of the classes that hold most. An
    image gives way only to a better one. The score, of which less is better, is
    ``timeliness / (1 + exp(-age / capacity)) + uncertainty * entropy / ln classes``.

    Args:
        entries: what is held already, by slot.
        capacity: slots.
        classes: C.
        timeliness: weight of the age.
        uncertainty: weight of the entropy.
    """

    def __init__(
        self, entries: Iterable[MemoryItem], capacity: int, classes: int, timeliness: float, uncertainty: float
    ) -> None:
        self.entries = list(entries)
        self.capacity = capacity
        self.classes = classes
        self.timeliness = timeliness
        self.uncertainty = uncertainty

    def add(self, label: int, uncertainty: float) -> int | None:
        """Offer an image, and let all grow older.

        Returns:
            The slot that the image goes into, or ``None`` if it is not held.
        """
        new = MemoryItem(label, uncertainty, age=0)
        slot = self._slot(new)
        if slot is not None:
            self.entries[slot : slot + 1] = [new]
        for entry in self.entries:
            entry.age += 1
        return slot

    def _slot(self, new: MemoryItem) -> int | None:
        held = Counter(entry.label for entry in self.entries)
        if held[new.label] >= self.capacity / self.classes:
            rivals = {new.label}
        elif len(self.entries) < self.capacity:
            return len(self.entries)
        else:
            most = max(held.values())
            rivals = {label for label, count in held.items() if count == most}
        slots = [slot for slot, entry in enumerate(self.entries) if entry.label in rivals]
        worst = max(slots, key=lambda slot: self._score(self.entries[slot]))
        return worst if self._score(self.entries[worst]) > self._score(new) else None

    def _score(self, entry: MemoryItem) -> float:
        staleness = 1 / (1 + math.exp(-entry.age / self.capacity))
        return self.timeliness * staleness + self.uncertainty * entry.uncertainty / math.log(self.classes)

"""Parts of a user's own, which watch a run from within: a stream, a network, methods, and their YAML files."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helpers.backbones import CLASSES, small_net
from tta.methods import Method, Tent
from tta.models import Backbone
from tta.streams import Domain, LoadedImages, Stream
from tta.streams.label_spaces import ClassSubset

NAMES = ("fog", "snow", "frost")
SHIFT = 30  # between the pixels of two domains


@dataclass
class Watch:
    """What the parts have seen, and when a run is to be interrupted."""

    made: Counter[str] = field(default_factory=Counter)
    images: list[Tensor] = field(default_factory=list)  # of each call of a method
    known: list[set[str]] = field(default_factory=list)  # names that its attributes and its images have, at each call
    resets: list[int] = field(default_factory=list)  # calls before each reset
    losses: dict[int, float] = field(default_factory=dict)  # to report, by the number of the call
    stop: int | None = None  # calls before Ctrl-C

    @property
    def calls(self) -> int:
        """Batches so far."""
        return len(self.images)

    def clear(self, stop: int | None = None) -> None:
        """Forget everything."""
        self.__init__(stop=stop)  # type: ignore[misc]

    def see(self, images: Tensor) -> None:
        """Keep a batch, or interrupt."""
        if self.calls == self.stop:
            raise KeyboardInterrupt
        self.images.append(images.clone())


WATCH = Watch()


def own_words(folder: Path, *more: str) -> list[str]:
    """What to give ``tta`` for these parts; their YAML files go into a folder."""
    parts = {
        "stream/own": ["stream", "batch_size: 8", "images: 23", "domains: 2", "broken: 0", "labels: 1", "part: false"],
        "model/own": ["network"],
        "method/watching": ["Watching"],
        "method/drawing": ["Drawing", "objective: ${objective}", "optimizer: ${optimizer}"],
    }
    for name, (target, *keys) in parts.items():
        file = folder / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join([f"_target_: {__name__}.{target}", *keys]) + "\n")
    WATCH.clear()
    return ["--config-dir", str(folder), "stream=own", "model=own", "device=cpu", "logger=none", *more]


def stream(batch_size: int, images: int, domains: int, broken: int, labels: int, part: bool) -> Stream:
    """Domains whose image i is filled with i, i + 30, i + 60.

    Args:
        batch_size: of the stream.
        images: in each domain.
        domains: how many.
        broken: every image whose number is a multiple of it cannot be read; 0 for none.
        labels: image i is of class ``labels * i``, modulo the classes.
        part: whether the labels are of three of the network's five classes.
    """
    WATCH.made["stream"] += 1

    def load(number: int, index: Tensor) -> LoadedImages:
        (kept,) = torch.where(index % broken > 0) if broken else (torch.arange(len(index)),)
        pixels = (index[kept] + SHIFT * number).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
        return LoadedImages(
            pixels, kept, tuple(f"{NAMES[number]} {i}" for i in index.tolist() if broken and i % broken == 0)
        )

    classes = 3 if part else CLASSES
    truth = labels * torch.arange(images) % classes
    made = [Domain(name, 5, truth, partial(load, number)) for number, name in enumerate(NAMES[:domains])]
    return Stream(made, classes, batch_size, classes=ClassSubset(torch.tensor([4, 0, 2]), CLASSES) if part else None)


def network() -> Backbone:
    """A small network with BatchNorm, whose weights are always the same."""
    WATCH.made["network"] += 1
    backbone = Backbone(small_net("batch"), CLASSES, None, None, "small")
    backbone.has_random_weights = False
    return backbone


def logits_of(pixels: Tensor) -> Tensor:
    """What ``Watching`` predicts before it has learned, (N, C), of values from 0 to 255."""
    return torch.sin(pixels[:, None].double() + torch.arange(CLASSES))


class Watching(Method):
    """Keeps all that it is called with, and what is known to it at each call; learns from the order of the images."""

    weights: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.register_buffer("weights", torch.zeros(CLASSES, dtype=torch.float64))

    def __call__(self, *images: Any, **others: Any) -> Tensor:
        assert len(images) == 1
        assert not others
        assert type(images[0]) is Tensor
        WATCH.known.append(set(vars(self)) | set(self.diagnostics) | set(vars(images[0])))
        return super().__call__(*images)

    def reset(self) -> None:
        WATCH.resets.append(WATCH.calls)
        super().reset()

    def step(self, images: Tensor) -> Tensor:
        self.log(loss=torch.tensor(WATCH.losses.get(WATCH.calls, 0.5)))
        WATCH.see(images)
        logits = logits_of((images[:, 0, 0, 0] * 255).round()) + self.weights
        self.weights = 0.5 * self.weights + logits[-1]
        return logits


class Drawing(Tent):
    """Draws from all global generators, as methods should not, and keeps a number."""

    def step(self, images: Tensor) -> Tensor:
        WATCH.see(images)
        noise = torch.rand(()) + float(np.random.rand()) + random.random()  # noqa: NPY002
        self.drift = 0.9 * getattr(self, "drift", 0.0) + float(noise)
        return super().step(images + 0.1 * noise + 0.01 * self.drift)

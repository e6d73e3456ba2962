"""Scenarios: how domains follow one another, how samples are ordered, when the method is reset.

Pure functions of (labels, seed, domain): the same for every method, whatever randomness the method itself uses. The
labels make the order and nothing else; a method never sees them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tta.utils.validation import check_float, check_fraction, check_int

RESETS = ("domain", "batch", "never")
ORDERS = ("shuffle", "file", "sorted", "dirichlet", "imbalance")
PARTS = ("all", "share", "rest")
PARAMETERS = {"delta": "dirichlet", "imbalance_ratio": "imbalance"}
"""Options that one order needs and no other takes."""

MIN_DELTA = 1e-4
"""Below, a class is in one slot all but surely, and the shares lose their precision."""

MOST_SLOTS = 100
"""Slots of a Dirichlet order where there are more classes than that, as in RoTTA."""


@dataclass(frozen=True)
class Scenario:
    """When the method is reset, what arrives together, and in which order. The options are independent of each other.

    Whatever the order, each image comes once in a visit of its domain; ``long_tailed`` and ``part`` alone leave images
    out.

    Args:
        reset: ``domain`` resets the method before each domain (single-domain protocol, as in Tent, arXiv:2006.10726);
            ``batch`` before each batch (episodic, as in MEMO, arXiv:2110.09506); ``never`` lets it adapt from the
            first image to the last (continual protocol, as in CoTTA, arXiv:2203.13591).
        order: of the images of a domain, or of all domains with ``mix``.

            - ``shuffle`` draws an order for each (seed, domain).
            - ``file`` keeps the order of the data set.
            - ``sorted`` brings class after class, in the order of their numbers, each shuffled.
            - ``dirichlet`` correlates labels in time, as in NOTE (arXiv:2208.05117) and RoTTA (arXiv:2303.13899): time
              is cut into S = min(classes, 100) slots, each class spreads its images over the slots by shares drawn
              from Dirichlet(delta, ..., delta), and in a slot class follows class in an order of its own.
            - ``imbalance`` shifts the labels as SAR does (arXiv:2302.12400): time has a step for each class, in drawn
              order, in which an image of that class is ``imbalance_ratio`` times as likely as one of any other.
              Where SAR draws 100 images for each of 1 000 steps anew, so that images repeat, here each image draws
              its step: its class's own with probability r / (r + C - 1), each other with 1 / (r + C - 1). With as many
              images of each class these are SAR's class proportions, in expectation, and no image comes twice.
        delta: concentration of ``order=dirichlet``, above 0: the smaller, the fewer classes at a time.
        imbalance_ratio: of ``order=imbalance``, at least 1 (a shuffle); ``.inf`` brings class after class.
        mix: ``True`` pools the images of all domains, and orders them as those of one (mixed domains, as in SAR and
            ROID, arXiv:2306.00650).
        rounds: how often all domains come, one sequence after another (recurring, as in CoTTA and PeTTA,
            arXiv:2311.18193). The first round is what comes without; each later one draws orders of its own.
        long_tailed: ratio of the largest class to the smallest, at least 1, with exponential decay in between: of the n
            images of class number k of C, n long_tailed^(-k / (C - 1)) come (arXiv:1901.05555), spread evenly over
            the data set and the same ones for every seed and domain; ``None`` keeps all.
        part: ``share`` keeps a share of the images in which each class has its due, ``rest`` what that leaves, so that
            options can be chosen with the labels of the one (``tta-search``) and measured on the other; ``all`` keeps
            both. Domains that corrupt the same images have the same ones in the share, whatever the seed of the order.
        share: of the images of each domain, above 0 and below 1; for ``part=share`` and ``part=rest``.
        share_seed: of the draw of the share.

    Raises:
        ValueError: for another value, or options that contradict each other.
    """

    reset: str = "domain"
    order: str = "shuffle"
    delta: float | None = None
    imbalance_ratio: float | None = None
    mix: bool = False
    rounds: int = 1
    long_tailed: float | None = None
    part: str = "all"
    share: float | None = None
    share_seed: int = 0

    def __post_init__(self) -> None:
        for name, right in (("reset", RESETS), ("order", ORDERS), ("part", PARTS)):
            if (value := getattr(self, name)) not in right:
                raise ValueError(f"scenario.{name} must be one of {', '.join(right)}; got {value!r}")
        for name, order in PARAMETERS.items():
            self._check_parameter(name, order)
        if not isinstance(self.mix, bool):
            raise ValueError(f"scenario.mix must be true or false, got {self.mix!r}")
        if self.mix and self.order == "file":
            raise ValueError("scenario.mix=true mixes nothing in the order of the files: choose another scenario.order")
        if self.mix and self.reset == "domain":
            raise ValueError(
                "scenario.reset=domain resets before each domain, but with scenario.mix=true none follows another: "
                "choose scenario.reset=never or batch"
            )
        check_int("scenario.rounds", self.rounds, 1)
        if self.long_tailed is not None:
            check_float("scenario.long_tailed", self.long_tailed, 1)
        self._check_share()

    def _check_share(self) -> None:
        check_int("scenario.share_seed", self.share_seed, 0)
        if self.part == "all":
            if self.share is not None:
                raise ValueError(
                    f"scenario.share={self.share!r} is for scenario.part=share or rest, but the part is all: choose "
                    "one of them, or leave it out with scenario.share=null"
                )
        elif self.share is None:
            raise ValueError(f"scenario.part={self.part} needs scenario.share: give it with scenario.share=0.2")
        else:
            check_fraction("scenario.share", self.share)

    def _check_parameter(self, name: str, order: str) -> None:
        value = getattr(self, name)
        if self.order != order:
            if value is not None:
                raise ValueError(
                    f"scenario.{name}={value!r} is for scenario.order={order}, but the order is {self.order}: choose "
                    f"that, or leave it out with scenario.{name}=null"
                )
            return
        if value is None:
            raise ValueError(f"scenario.order={order} needs scenario.{name}: give it with scenario.{name}=<number>")
        check_float(f"scenario.{name}", value, 1 if order == "imbalance" else MIN_DELTA)

    def select(self, labels: Tensor) -> Tensor:
        """Choose from the samples with these labels (N,) those that come, as ascending positions.

        Raises:
            ValueError: if there are too few for a share of them.
        """
        kept = self._long_tail(labels)
        if self.part == "all":
            return kept
        assert self.share is not None
        share, rest = split(labels[kept], self.share, self.share_seed)
        return kept[share if self.part == "share" else rest]

    def _long_tail(self, labels: Tensor) -> Tensor:
        if self.long_tailed is None:
            return torch.arange(len(labels))
        classes = labels.unique()
        chosen = []
        for k, label in enumerate(classes):
            (positions,) = torch.where(labels == label)
            decay = self.long_tailed ** (-k / max(len(classes) - 1, 1))
            chosen.append(positions[evenly_spaced(len(positions), max(round(len(positions) * decay), 1))])
        return torch.cat(chosen).sort().values if chosen else torch.arange(0)

    def order_of(self, labels: Tensor, domain: str, seed: int) -> Tensor:
        """Order the samples with these labels (N,): the positions in the order of their arrival, each once."""
        if self.order == "file":
            return torch.arange(len(labels))
        # A hash, so that a domain's order depends neither on the other domains nor on its place among them.
        digest = hashlib.sha256(f"{seed}/{domain}".encode()).digest()
        drawn = int.from_bytes(digest[:8], "big") >> 1
        shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(drawn))
        if self.order == "shuffle" or not len(labels):
            return shuffled
        # The other orders sort what is shuffled, stably: images of a class stay shuffled among themselves.
        rng = np.random.default_rng(drawn)
        classes = np.unique(labels[shuffled].numpy(), return_inverse=True)[1]
        if self.order == "sorted":
            order = np.argsort(classes, kind="stable")
        elif self.order == "dirichlet":
            assert self.delta is not None
            order = _dirichlet(classes, self.delta, rng)
        else:
            assert self.imbalance_ratio is not None
            order = _imbalance(classes, self.imbalance_ratio, rng)
        return shuffled[torch.from_numpy(order)]


def evenly_spaced(total: int, count: int) -> Tensor:
    """Positions of ``count`` of ``num_source_classes`` samples, as evenly spaced as can be."""
    return torch.arange(count) * total // count


def split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Draw a share of the samples with these labels (N,) in which each class has its due, to within one sample.

    A function of the labels and the seed alone, so that an image is in the share under all corruptions, or under none.

    Args:
        labels: int64 (N,).
        share: of the samples, above 0 and below 1.
        seed: of the draw.

    Returns:
        The positions of the share and of the rest, each in ascending order.

    Raises:
        ValueError: if either would be empty.
    """
    total, count = len(labels), round(share * len(labels))
    if not 0 < count < total:
        raise ValueError(
            f"scenario.share={share} of {total} images is {count} of them, but the share and the rest need one image "
            "at least: choose another scenario.share, or a larger stream.limit"
        )
    content = hashlib.sha256(f"{seed}/share/".encode() + labels.numpy().tobytes()).digest()
    rng = np.random.default_rng(int.from_bytes(content[:8], "big"))
    classes = np.unique(labels.numpy(), return_inverse=True)[1]
    # Class after class, in drawn order and shuffled, every so-and-so-many-th: none has one more than its due.
    turn = rng.permutation(int(classes.max()) + 1)[classes]
    by_class = np.lexsort((rng.permutation(total), turn))
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[torch.from_numpy(by_class)[evenly_spaced(total, count)]] = True
    return torch.where(chosen)[0], torch.where(~chosen)[0]


def _dirichlet(classes: np.ndarray, delta: float, rng: np.random.Generator) -> np.ndarray:
    """Order samples of these classes (N,), numbered from 0 without gaps, slot by slot and class by class in a slot."""
    count = np.bincount(classes)  # (C,)
    slots = min(len(count), MOST_SLOTS)
    shares = rng.dirichlet(np.full(slots, delta), len(count))  # (C, S)
    # Rounded, not cut off as in NOTE and RoTTA, where nearly every class leaves one image for a later slot.
    ends = np.rint(shares.cumsum(1) * count[:, None]).astype(np.int64)
    ends[:, -1] = count  # whatever the error of the sum
    by_class = np.argsort(classes, kind="stable")
    slot = np.empty_like(classes)
    slot[by_class] = np.repeat(np.tile(np.arange(slots), len(count)), np.diff(ends, axis=1, prepend=0).ravel())
    turn = rng.permuted(np.tile(np.arange(len(count)), (slots, 1)), axis=1)  # (S, C): a class's place in a slot
    return np.lexsort((turn[slot, classes], slot))


def _imbalance(classes: np.ndarray, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Order samples of these classes (N,), numbered from 0 without gaps, by the step that each draws."""
    steps = int(classes.max()) + 1
    own = rng.permutation(steps)[classes]
    away = rng.random(len(classes)) >= 1 / (1 + (steps - 1) / ratio)
    other = (own + 1 + rng.integers(0, max(steps - 1, 1), len(classes))) % steps
    return np.argsort(np.where(away, other, own), kind="stable")

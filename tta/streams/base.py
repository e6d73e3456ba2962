"""The stream of batches: nothing here knows methods, models or devices."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tta.checks import whole_number
from tta.streams.classes import Part
from tta.streams.scenario import Scenario, spread

MIXED = "mixed"
"""Name of what arrives where the images of several domains come together."""

SAMPLED = 4
"""Images of a domain that its name is made of: enough to tell data sets apart, few enough to be read at once."""


class Loaded(NamedTuple):
    """Images read for a list of sample indices; those that could not be read are left out and named."""

    images: Tensor  # uint8 (n, 3, H, W)
    kept: Tensor  # int64 (n,): positions in the list asked for
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Domain:
    """One data set under one condition, e.g. gaussian_noise at severity 5.

    Args:
        name: the condition, e.g. ``gaussian_noise``.
        severity: 1 to 5; 0 for uncorrupted images.
        labels: int64 (N,), in [0, C).
        load: reads the images of sample indices (n,).
    """

    name: str
    severity: int
    labels: Tensor
    load: Callable[[Tensor], Loaded]

    def __str__(self) -> str:
        return f"{self.name}-{self.severity}"


class Visit(NamedTuple):
    """A domain that comes, perhaps not for the first time."""

    number: int  # of the domain, in Stream.domains
    domain: str
    severity: int
    visit: int  # 1 when this domain comes at this severity for the first time, then 2 ...


def place_of(visits: Sequence[Visit]) -> dict[str, Any]:
    """Columns that say where a row belongs; for what is mixed together, as far as all agree."""

    def agreed(values: Iterable[Any], otherwise: str | None) -> Any:
        found = set(values)
        return found.pop() if len(found) == 1 else otherwise

    return {
        "domain": agreed((visit.domain for visit in visits), MIXED),
        "severity": agreed((visit.severity for visit in visits), None),
        "visit": agreed((visit.visit for visit in visits), None),
    }


@dataclass(frozen=True)
class Planned:
    """A batch to come: which samples of which visit."""

    visits: tuple[Visit, ...]  # those it draws from: one, or all that are mixed together
    member: Tensor  # int64 (n,): the place in visits of each image
    index: Tensor  # int64 (n,): sample indices in the data set
    starts_domain: bool  # it is the first of its visits
    reset: bool


@dataclass(frozen=True)
class Batch:
    """What arrives at one step."""

    images: Tensor  # uint8 (n, 3, H, W)
    labels: Tensor  # int64 (n,)
    visits: tuple[Visit, ...]  # those it draws from: one, or all that are mixed together
    member: Tensor  # int64 (n,): the place in visits of each image
    index: Tensor  # int64 (n,): sample indices in the data set
    starts_domain: bool
    reset: bool  # the method is to be reset before this batch
    skipped: tuple[tuple[int, str], ...]  # images that could not be read, each with the place in visits of its domain

    @property
    def domain(self) -> str:
        """Name of the domain, or ``mixed``."""
        return place_of(self.visits)["domain"]

    def pin_memory(self) -> Batch:
        """Move what goes to a GPU into page-locked memory; called by the ``DataLoader``."""
        pinned = {name: getattr(self, name).pin_memory() for name in ("images", "labels", "member")}
        return replace(self, **pinned)


class Stream:
    """Domains and how they are cut into batches.

    Args:
        domains: in the order of their arrival.
        num_classes: C.
        batch_size: images in a batch; the last one of a domain may have fewer.
        limit: images per domain, spread evenly over the data set so that classes keep their shares, and the same ones
            for every seed and domain; ``None`` takes all.
        workers: processes that read batches ahead; 0 reads in the main process.
        classes: of which the labels are the places, if they are a part of those that backbones may have; a backbone
            with all of them is restricted to these.
        subset: name of the list that the images were chosen by; ``None`` if the data set is whole.

    Raises:
        ValueError: if there are no domains, or a number is out of its range.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        num_classes: int,
        batch_size: int,
        limit: int | None = None,
        workers: int = 0,
        classes: Part | None = None,
        subset: str | None = None,
    ) -> None:
        if not domains:
            raise ValueError("a stream needs at least one domain: stream.corruptions is empty")
        self.domains = list(domains)
        self.num_classes = num_classes
        self.batch_size = whole_number("stream.batch_size", batch_size, 1)
        self.limit = None if limit is None else whole_number("stream.limit", limit, 1)
        self.workers = whole_number("stream.workers", workers, 0)
        self.classes = classes
        self.subset = subset

    @cached_property
    def digest(self) -> str:
        """Name of the data, wherever they are: of all labels, a few images of each domain, and what is chosen."""
        content = hashlib.sha256()
        if self.subset is not None:
            content.update(self.subset.encode())
        if self.classes is not None:
            content.update(f"{self.classes.places.tolist()} of {self.classes.total}".encode())
        for domain in self.domains:
            content.update(str(domain).encode())
            content.update(domain.labels.numpy().tobytes())
            total = len(domain.labels)
            few = torch.arange(min(SAMPLED, total)) * total // SAMPLED
            content.update(domain.load(few).images.contiguous().numpy().tobytes())
        return content.hexdigest()[:12]

    def plan(self, scenario: Scenario, seed: int) -> list[Planned]:
        """List all batches to come; it depends on the stream, the scenario and the seed alone."""
        plan: list[Planned] = []
        seen: Counter[str] = Counter()
        for number in range(scenario.rounds):
            visits = []
            for place, domain in enumerate(self.domains):
                seen[str(domain)] += 1
                visits.append(Visit(place, domain.name, domain.severity, seen[str(domain)]))
            if scenario.mix:
                plan.extend(self._cut(visits, scenario, _again(MIXED, number + 1), seed))
                continue
            for visit in visits:
                name = _again(str(self.domains[visit.number]), visit.visit)
                plan.extend(self._cut([visit], scenario, name, seed))
        return plan

    def _cut(self, visits: Sequence[Visit], scenario: Scenario, name: str, seed: int) -> Iterator[Planned]:
        """Cut what comes together into batches, in the order that goes by this name."""
        indices, labels = [], []
        for visit in visits:
            domain = self.domains[visit.number]
            index = self._selected(domain)
            indices.append(index[scenario.keep(domain.labels[index])])
            labels.append(domain.labels[indices[-1]])
        member = torch.arange(len(visits)).repeat_interleave(torch.tensor([len(index) for index in indices]))
        order = scenario.arrange(torch.cat(labels), name, seed)
        parts = (values[order].split(self.batch_size) for values in (member, torch.cat(indices)))
        for number, (of, index) in enumerate(zip(*parts, strict=True)):
            reset = scenario.reset == "batch" or (scenario.reset == "domain" and number == 0)
            yield Planned(tuple(visits), of, index, number == 0, reset)

    def batches(self, plan: Sequence[Planned], pin_memory: bool = False) -> Iterator[Batch]:
        """Read the planned batches, in order; what cannot be read raises ``ValueError`` or ``OSError`` at its turn."""
        # A batch is one item of the data set: a worker reads it whole, and nothing is collated again.
        loader = DataLoader(
            _Batches(self.domains, plan),
            batch_size=None,
            shuffle=False,
            num_workers=self.workers,
            collate_fn=_as_is,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # or it would draw from the global one, which is the method's
        )
        for batch in loader:
            if isinstance(batch, Exception):
                raise batch
            yield batch

    def _selected(self, domain: Domain) -> Tensor:
        total = len(domain.labels)
        return spread(total, total if self.limit is None else min(self.limit, total))


class _Batches(Dataset[Batch | Exception]):
    def __init__(self, domains: Sequence[Domain], plan: Sequence[Planned]) -> None:
        self.domains = domains
        self.plan = plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> Batch | Exception:
        planned = self.plan[number]
        try:
            parts = [self._part(planned, place) for place in planned.member.unique().tolist()]
        except (OSError, ValueError) as error:
            return error  # raised in a worker, its message would be the text of a whole trace
        order = torch.cat([part.positions for part in parts]).argsort()
        kept = _together([part.positions for part in parts], order)
        return Batch(
            images=_together([part.images for part in parts], order),
            labels=_together([part.labels for part in parts], order),
            visits=planned.visits,
            member=planned.member[kept],
            index=planned.index[kept],
            starts_domain=planned.starts_domain,
            reset=planned.reset,
            skipped=tuple(image for part in parts for image in part.skipped),
        )

    def _part(self, planned: Planned, place: int) -> _Part:
        """Read the images of a batch that belong to one of its visits."""
        (positions,) = torch.where(planned.member == place)
        domain = self.domains[planned.visits[place].number]
        images, kept, skipped = domain.load(planned.index[positions])
        positions = positions[kept]
        return _Part(images, domain.labels[planned.index[positions]], positions, tuple((place, s) for s in skipped))


class _Part(NamedTuple):
    images: Tensor
    labels: Tensor
    positions: Tensor  # in the batch
    skipped: tuple[tuple[int, str], ...]


def _together(parts: list[Tensor], order: Tensor) -> Tensor:
    """Join what was read domain by domain, in the order of arrival; images keep their memory format."""
    if len(parts) == 1:
        return parts[0]
    joined = torch.cat(parts)
    return torch.empty_like(joined).copy_(joined[order])


def _again(name: str, visit: int) -> str:
    """Name of the order of a visit: the first one's is that of the domain, whether or not it comes again."""
    return name if visit == 1 else f"{name}/{visit}"


def _as_is(batch: Any) -> Any:
    return batch

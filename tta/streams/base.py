"""The stream of batches: nothing here knows methods, models or devices."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tta.checks import whole_number
from tta.streams.scenario import Scenario

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


@dataclass(frozen=True)
class Planned:
    """A batch to come: which samples of which domain."""

    domain: int
    index: Tensor  # int64 (n,): sample indices in the data set
    starts_domain: bool
    reset: bool


@dataclass(frozen=True)
class Batch:
    """What arrives at one step."""

    images: Tensor  # uint8 (n, 3, H, W)
    labels: Tensor  # int64 (n,)
    domain: str
    severity: int
    index: Tensor  # int64 (n,): sample indices in the data set
    starts_domain: bool
    reset: bool  # the method is to be reset before this batch
    skipped: tuple[str, ...]  # images that could not be read

    def pin_memory(self) -> Batch:
        """Move what goes to a GPU into page-locked memory; called by the ``DataLoader``."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())


class Stream:
    """Domains and how they are cut into batches.

    Args:
        domains: in the order of their arrival.
        num_classes: C.
        batch_size: images in a batch; the last one of a domain may have fewer.
        limit: images per domain, spread evenly over the data set so that classes keep their shares, and the same ones
            for every seed and domain; ``None`` takes all.
        workers: processes that read batches ahead; 0 reads in the main process.

    Raises:
        ValueError: if there are no domains, or a number is out of its range.
    """

    def __init__(
        self, domains: Sequence[Domain], num_classes: int, batch_size: int, limit: int | None = None, workers: int = 0
    ) -> None:
        if not domains:
            raise ValueError("a stream needs at least one domain: stream.corruptions is empty")
        self.domains = list(domains)
        self.num_classes = num_classes
        self.batch_size = whole_number("stream.batch_size", batch_size, 1)
        self.limit = None if limit is None else whole_number("stream.limit", limit, 1)
        self.workers = whole_number("stream.workers", workers, 0)

    @cached_property
    def digest(self) -> str:
        """Name of the data, wherever they are: of all labels and a few images of each domain."""
        content = hashlib.sha256()
        for domain in self.domains:
            content.update(str(domain).encode())
            content.update(domain.labels.numpy().tobytes())
            total = len(domain.labels)
            few = torch.arange(min(SAMPLED, total)) * total // SAMPLED
            content.update(domain.load(few).images.contiguous().numpy().tobytes())
        return content.hexdigest()[:12]

    def plan(self, scenario: Scenario, seed: int) -> list[Planned]:
        """List all batches to come; it depends on the stream, the scenario and the seed alone."""
        plan = []
        for number, domain in enumerate(self.domains):
            index = scenario.arrange(self._selected(domain), str(domain), seed)
            for start, part in enumerate(index.split(self.batch_size)):
                starts = start == 0
                plan.append(Planned(number, part, starts, starts and scenario.reset == "domain"))
        return plan

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
        if self.limit is None or self.limit >= total:
            return torch.arange(total)
        return torch.arange(self.limit) * total // self.limit


class _Batches(Dataset[Batch | Exception]):
    def __init__(self, domains: Sequence[Domain], plan: Sequence[Planned]) -> None:
        self.domains = domains
        self.plan = plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> Batch | Exception:
        planned = self.plan[number]
        domain = self.domains[planned.domain]
        try:
            images, kept, skipped = domain.load(planned.index)
        except (OSError, ValueError) as error:
            return error  # raised in a worker, its message would be the text of a whole trace
        index = planned.index[kept]
        return Batch(
            images=images,
            labels=domain.labels[index],
            domain=domain.name,
            severity=domain.severity,
            index=index,
            starts_domain=planned.starts_domain,
            reset=planned.reset,
            skipped=skipped,
        )


def _as_is(batch: Any) -> Any:
    return batch

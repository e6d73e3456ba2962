"""The stream of batches: nothing here knows methods or models."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from tta.streams.cache import cache_folder, check_cache, open_cached
from tta.streams.label_spaces import ClassSubset
from tta.streams.loader import read_batches
from tta.streams.scenario import Scenario, evenly_spaced
from tta.streams.types import MIXED, Batch, BatchPlan, Domain, DomainVisit
from tta.utils.devices import CPU
from tta.utils.validation import check_int

SAMPLED = 4
"""Images of a domain that its name is made of: enough to tell data sets apart, few enough to be read at once."""


class Stream:
    """Domains and how they are cut into batches.

    Args:
        domains: in the order of their arrival.
        num_classes: C.
        batch_size: images in a batch; the last one of a domain may have fewer.
        limit: images per domain, spread evenly over the data set so that classes keep their shares, and the same ones
            for every seed and domain; ``None`` takes all.
        workers: threads that read batches ahead, or processes where images are corrupted; 0 reads when a batch is due.
        classes: of which the labels are the places, if they are a part of those that backbones may have; a backbone
            with all of them is restricted to these.
        subset: name of the list that the images were chosen by; ``None`` if the data set is whole.
        cache: decode, or make, the chosen images once and keep their pixels on disk: ``True`` for a folder in the cache
            of this program, or the folder. The images are the same ones, and so are the results.

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
        classes: ClassSubset | None = None,
        subset: str | None = None,
        cache: bool | str = False,
    ) -> None:
        if not domains:
            raise ValueError("a stream needs at least one domain: stream.corruptions is empty")
        self.domains = list(domains)
        self.num_classes = num_classes
        self.batch_size = check_int("stream.batch_size", batch_size, 1)
        self.limit = None if limit is None else check_int("stream.limit", limit, 1)
        self.workers = check_int("stream.workers", workers, 0)
        self.classes = classes
        self.subset = subset
        self.cache = check_cache(cache)

    @cached_property
    def digest(self) -> str:
        """Name of the data, wherever they are: of all labels, a few images of each domain, and what is chosen."""
        content = hashlib.sha256()
        if self.subset is not None:
            content.update(self.subset.encode())
        if self.classes is not None:
            content.update(f"{self.classes.class_ids.tolist()} of {self.classes.num_source_classes}".encode())
        for domain in self.domains:
            content.update(str(domain).encode())
            content.update(domain.labels.numpy().tobytes())
            total = len(domain.labels)
            few = torch.arange(min(SAMPLED, total)) * total // SAMPLED
            content.update(domain.load(few).images.contiguous().numpy().tobytes())
        return content.hexdigest()[:12]

    def plan(self, scenario: Scenario, seed: int) -> list[BatchPlan]:
        """List all batches to come; it depends on the stream, the scenario and the seed alone."""
        plan: list[BatchPlan] = []
        seen: Counter[str] = Counter()
        for number in range(scenario.rounds):
            visits = []
            for place, domain in enumerate(self.domains):
                seen[str(domain)] += 1
                visits.append(DomainVisit(place, domain.name, domain.severity, seen[str(domain)]))
            if scenario.mix:
                plan.extend(self._plan_domain(visits, scenario, _order_key(MIXED, number + 1), seed))
                continue
            for visit in visits:
                name = _order_key(str(self.domains[visit.number]), visit.visit)
                plan.extend(self._plan_domain([visit], scenario, name, seed))
        return plan

    def _plan_domain(
        self, visits: Sequence[DomainVisit], scenario: Scenario, name: str, seed: int
    ) -> Iterator[BatchPlan]:
        """Cut what comes together into batches, in the order that goes by this name."""
        indices, labels = [], []
        for visit in visits:
            domain = self.domains[visit.number]
            index = self._selected(domain)
            indices.append(index[scenario.select(domain.labels[index])])
            labels.append(domain.labels[indices[-1]])
        domain_index = torch.arange(len(visits)).repeat_interleave(torch.tensor([len(index) for index in indices]))
        order = scenario.order_of(torch.cat(labels), name, seed)
        parts = (values[order].split(self.batch_size) for values in (domain_index, torch.cat(indices)))
        for number, (of, index) in enumerate(zip(*parts, strict=True)):
            reset = scenario.reset == "batch" or (scenario.reset == "domain" and number == 0)
            yield BatchPlan(tuple(visits), of, index, number == 0, reset)

    def prepare(self) -> None:
        """Make what is made once, before the first batch: the decoded cache, if there is to be one.

        Raises:
            ValueError: if an image cannot be read, or the images of a domain cannot be cached.
            OSError: if the cache cannot be written.
        """
        _ = self._sources

    @cached_property
    def _sources(self) -> Sequence[Domain]:
        """The domains, read from where that is fastest."""
        if self.cache is False:
            return self.domains
        chosen = [self._selected(domain) for domain in self.domains]
        return open_cached(self.domains, chosen, cache_folder(self.cache), self.workers)

    def batches(self, plan: Sequence[BatchPlan], device: torch.device = CPU) -> Iterator[Batch]:
        """Read the planned batches, in order.

        Args:
            plan: what comes.
            device: where the images are to be; the rest of a batch stays in memory.

        Raises:
            ValueError: at the turn of a batch that cannot be read.
            OSError: likewise.
        """
        yield from read_batches(self._sources, plan, self.workers, device)

    def _selected(self, domain: Domain) -> Tensor:
        total = len(domain.labels)
        return evenly_spaced(total, total if self.limit is None else min(self.limit, total))


def _order_key(name: str, visit: int) -> str:
    """Name of the order of a visit: the first one's is that of the domain, whether or not it comes again."""
    return name if visit == 1 else f"{name}/{visit}"

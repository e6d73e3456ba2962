"""One trial: the stream once, with the values that are tried, judged by the share of it that has labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from tta.methods.base import Method, batch_too_small
from tta.runner import Runner
from tta.runs.directory import RunDirectory
from tta.search.space import Values
from tta.streams import Batch, BatchPlan, DomainVisit, Scenario, Stream
from tta.utils.devices import CPU, FP32, Precision

UNLABELLED = "unlabelled"
"""Name of the images that arrive in a trial but have no part in its accuracy."""
MOST_BYTES = 4 * 2**30
"""Images that are kept in memory from one trial to the next; a larger share is read again each time."""


class GivenUp(Exception):
    """Raised within a trial that is to be given up."""


class JudgedStream(Stream):
    """A stream whose batches are read once and kept, and whose labels are known for a share of the images alone.

    The others go by the name of ``UNLABELLED``, as if they were another domain mixed in, and have lost their labels.

    Args:
        stream: what is read.
        scenario: what is played, always the same.
        seed: of the order.
        share: the scenario that brings the share alone.
    """

    def __init__(self, stream: Stream, scenario: Scenario, seed: int, share: Scenario) -> None:
        self.__dict__.update(vars(stream))
        self._stream = stream
        self._kept: list[Batch] | None = None
        self._known = [torch.zeros(len(domain.labels), dtype=torch.bool) for domain in stream.domains]
        for planned in stream.plan(share, seed):
            for place, visit in enumerate(planned.visits):
                self._known[visit.number][planned.index[planned.domain_index == place]] = True
        self._plan = stream.plan(scenario, seed)
        everything = (self._known_in(p.visits, p.domain_index, p.index).all() for p in self._plan)
        self._all_known = all(everything)
        self.visits = len({visit for planned in self._plan for visit in planned.visits})
        self.smallest = min(len(planned.index) for planned in self._plan)

    def plan(self, scenario: Scenario, seed: int) -> list[BatchPlan]:
        """List all batches to come."""
        return self._plan

    def batches(self, plan: Sequence[BatchPlan], device: torch.device = CPU) -> Iterator[Batch]:
        """Give the planned batches, in order."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Batch] = []
        left = MOST_BYTES
        for batch in self._stream.batches(plan, device):
            judged = self._judged(batch)
            left -= batch.images.nbytes
            kept = [*kept, judged] if left >= 0 else []
            yield judged
        self._kept = kept if left >= 0 else None

    def _judged(self, batch: Batch) -> Batch:
        """Take the labels away that are not known."""
        if self._all_known:
            return batch
        known = self._known_in(batch.visits, batch.domain_index, batch.index)
        others = tuple(visit._replace(domain=UNLABELLED) for visit in batch.visits)
        return replace(
            batch,
            labels=torch.where(known, batch.labels, 0),
            visits=batch.visits + others,
            domain_index=torch.where(known, batch.domain_index, batch.domain_index + len(batch.visits)),
        )

    def _known_in(self, visits: Sequence[DomainVisit], domain_index: Tensor, index: Tensor) -> Tensor:
        """Say of which images (n,) the labels are known."""
        known = torch.empty(len(index), dtype=torch.bool)
        for place, visit in enumerate(visits):
            of = domain_index == place
            known[of] = self._known[visit.number][index[of]]
        return known


@dataclass
class Reporter:
    """A logger that hands on the accuracy on the share so far, after each domain but the last.

    Args:
        report: takes domains seen and their mean accuracy, and returns whether to give up.
        domains: how many are to come.
    """

    report: Callable[[int, float], bool]
    domains: int

    def __post_init__(self) -> None:
        self.accuracies: list[float] = []

    def start(self, name: str, config: Mapping[str, Any], directory: Path, images: int, done: int = 0) -> None:
        """Nothing."""

    def batch(self, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def domain(self, row: Mapping[str, Any]) -> None:
        """Report.

        Raises:
            GivenUp: if the answer is yes.
        """
        if row["domain"] == UNLABELLED:
            return
        self.accuracies.append(row["accuracy"])
        if len(self.accuracies) < self.domains and self.report(len(self.accuracies), fmean(self.accuracies)):
            raise GivenUp

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


@dataclass
class Evaluation:
    """Gives values their accuracy. Model and images are loaded once for all.

    Args:
        make_method: makes the method with these values, on its device.
        stream: all images, with their labels.
        scenario: which of them arrive in a trial, in which order, and when the method is reset.
        share: brings the images alone whose labels may be used.
        seed: of the order and of whatever the method draws.
        device: where the method is.
        precision: that it computes in.
    """

    make_method: Callable[[Values], Method]
    stream: Stream
    scenario: Scenario
    share: Scenario
    seed: int
    device: torch.device
    precision: Precision = FP32

    def __post_init__(self) -> None:
        self._stream = JudgedStream(self.stream, self.scenario, self.seed, self.share)

    def check(self, method: Method) -> None:
        """Raise ``ValueError`` if a batch is too small for the method."""
        if self._stream.smallest < method.min_batch_size:
            raise ValueError(batch_too_small(method, self._stream.smallest))

    def __call__(self, values: Values, report: Callable[[int, float], bool]) -> float:
        """Run with these values: the accuracy on the share, mean over domains, in [0, 1].

        Raises:
            GivenUp: if ``report`` says so.
            FloatingPointError: if the adaptation diverges.
        """
        torch.manual_seed(self.seed)
        method = self.make_method(values)
        # What is mixed ends all at once: there is nothing to save.
        reporter = Reporter(report, 0 if self.scenario.mix else self._stream.visits)
        with TemporaryDirectory() as folder:
            directory, loggers = RunDirectory(Path(folder)), [reporter]
            Runner(
                method, self._stream, self.scenario, self.seed, directory, loggers, self.device, self.precision
            ).run()
        return fmean(reporter.accuracies)

"""From predictions to the rows of a run: the only place where labels meet logits."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tta.loggers import Logger
from tta.metrics import DomainMetrics
from tta.runs.directory import RunDirectory
from tta.streams import Batch, DomainVisit
from tta.streams.types import domain_key

FLUSH_EVERY = {"cpu": 1, "cuda": 16}
"""Batches whose figures are fetched from the device together: waiting for a GPU after each would leave it idle."""


class _UnreadBatch(NamedTuple):
    """A batch whose figures are still on the device."""

    n: int
    figures: Tensor  # float64 (5,): correct, entropy, finite, loss, used
    diagnostics: frozenset[str]  # which of loss and used the method reported


@dataclass
class _RunningAccuracy:
    """Predictions so far."""

    correct: int = 0
    n: int = 0

    def add(self, correct: int, n: int) -> float:
        """Take in a batch and return the accuracy so far, in [0, 1]."""
        self.correct += correct
        self.n += n
        return self.correct / self.n


class Recorder:
    """Turns predictions into the rows of a run, and hands them to its directory and loggers.

    Args:
        directory: entered.
        loggers: are told of every row after it is in the directory.
        num_classes: C.
        device: of the logits to come.
    """

    def __init__(
        self, directory: RunDirectory, loggers: Sequence[Logger], num_classes: int, device: torch.device
    ) -> None:
        self.directory = directory
        self.loggers = loggers
        self.num_classes = num_classes
        self.device = device
        self.domains: list[dict[str, Any]] = []
        self.skipped: list[str] = []
        self.count = _RunningAccuracy()
        self.step = 0
        self.started_at = self.flushed_at = time.perf_counter()
        self.unread: list[_UnreadBatch] = []
        self.metrics: DomainMetrics | None = None
        self.summary: dict[str, Any] = {}

    def start_domain(self, visits: Sequence[DomainVisit]) -> None:
        """Begin a domain, or several that are mixed together; the one before has ended."""
        self.visits = visits
        self.domain_key = domain_key(visits)
        self.metrics = DomainMetrics(self.num_classes, self.device)
        self.domain_count = _RunningAccuracy()
        self.domain_skipped = [0] * len(visits)
        self.domain_started_at = time.perf_counter()

    def skip(self, images: Sequence[tuple[int, str]]) -> None:
        """Count images that could not be read."""
        for place, image in images:
            self.skipped.append(image)
            self.domain_skipped[place] += 1

    def record(self, batch: Batch, logits: Tensor, diagnostics: Mapping[str, Tensor]) -> None:
        """Record the predictions of a batch: logits (N, C), and what the method logged (``Method.log``)."""
        assert self.metrics is not None
        labels = batch.labels.to(self.device, non_blocking=True)
        domain_index = batch.domain_index.to(self.device, non_blocking=True) if len(self.visits) > 1 else None
        counts = self.metrics.update(logits, labels, domain_index)
        missing = counts.correct.new_zeros(())
        figures = (*counts, diagnostics.get("loss", missing), diagnostics.get("used", missing))
        stacked = torch.stack([figure.double() for figure in figures])
        self.unread.append(_UnreadBatch(len(labels), stacked, frozenset(diagnostics)))
        if len(self.unread) >= FLUSH_EVERY[self.device.type]:
            self.flush()

    def flush(self, check: bool = True) -> None:
        """Fetch the figures of unread batches from the device, all at once, and write their rows."""
        unread, self.unread = self.unread, []
        if not unread:
            return
        fetched = torch.stack([batch.figures for batch in unread]).tolist()
        now = time.perf_counter()
        seconds = (now - self.flushed_at) / len(unread)  # shared evenly among batches read together
        self.flushed_at = now
        for (n, _, diagnostics), figures in zip(unread, fetched, strict=True):
            self._write_batch(n, diagnostics, figures, seconds)
            if check:
                self._check_finite(figures)
        self.directory.flush()

    def end_domain(self) -> None:
        """Write what the domain came to."""
        if self.metrics is None:
            return
        self.flush()
        seconds = time.perf_counter() - self.domain_started_at
        for number, visit in enumerate(self.visits):
            self._write_domain(number, visit, seconds)
        self.directory.flush()
        self.metrics = None

    def state(self) -> dict[str, Any]:
        """What ``load_state`` continues from; nothing may be unread."""
        now = time.perf_counter()
        state = {
            "domains": self.domains,
            "skipped": self.skipped,
            "correct": self.count.correct,
            "images": self.count.n,
            "step": self.step,
            "seconds": now - self.started_at,
            "domain": None,
        }
        if self.metrics is not None:
            state["domain"] = {
                "visits": [tuple(visit) for visit in self.visits],
                "metrics": self.metrics.state(),
                "count": (self.domain_count.correct, self.domain_count.n),
                "skipped": self.domain_skipped,
                "seconds": now - self.domain_started_at,
            }
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state`` gave; the time in between does not count."""
        self.domains, self.skipped, self.step = state["domains"], state["skipped"], state["step"]
        self.count = _RunningAccuracy(state["correct"], state["images"])
        self.started_at -= state["seconds"]
        if (domain := state["domain"]) is not None:
            self.start_domain([DomainVisit(*visit) for visit in domain["visits"]])
            assert self.metrics is not None
            self.metrics.load_state(domain["metrics"])
            self.domain_count = _RunningAccuracy(*domain["count"])
            self.domain_skipped = domain["skipped"]
            self.domain_started_at -= domain["seconds"]

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Write ``summary.json``, with ``metadata`` beside the figures of the whole run, and tell the loggers."""
        figures = {
            "accuracy": sum(row["accuracy"] for row in self.domains) / len(self.domains),
            "online_accuracy": self.count.correct / self.count.n,
            "images": self.count.n,
            "seconds": time.perf_counter() - self.started_at,
            "skipped": self.skipped,
            "domains": self.domains,
        }
        self.summary = {"name": self.directory.path.name, **figures, **metadata}
        self.directory.finish(self.summary)
        for logger in self.loggers:
            logger.finish(self.summary)

    def _write_domain(self, number: int, visit: DomainVisit, seconds: float) -> None:
        assert self.metrics is not None
        if not self.metrics.images(number):
            raise ValueError(f"no image of {visit.domain} could be read: see stream.root")
        place, figures = domain_key([visit]), self.metrics.compute(number)
        share = figures["n"] / self.domain_count.n  # of the time of what was mixed together
        row = {**place, **figures, "skipped": self.domain_skipped[number], "seconds": share * seconds}
        self.domains.append(row)
        self.directory.write("domains", row)
        for label, (labels, predictions, correct) in enumerate(self.metrics.classes(number)):
            counts = {"class": label, "labels": labels, "predictions": predictions, "correct": correct}
            self.directory.write("classes", {**place, **counts})
        for logger in self.loggers:
            logger.domain(row)

    def _write_batch(self, n: int, diagnostics: frozenset[str], figures: list[float], seconds: float) -> None:
        correct, entropy, _, loss, used = figures
        row = {
            "step": self.step,
            **self.domain_key,
            "n": n,
            "batch_accuracy": correct / n,
            "domain_accuracy": self.domain_count.add(int(correct), n),
            "online_accuracy": self.count.add(int(correct), n),
            "entropy": entropy,
            "loss": loss if "loss" in diagnostics else None,
            "used": int(used) if "used" in diagnostics else None,
            "seconds": seconds,
        }
        self.step += 1
        self.directory.write("batches", row)
        for logger in self.loggers:
            logger.batch(row)

    def _check_finite(self, figures: list[float]) -> None:
        _, _, finite, loss, _ = figures
        if not (finite and math.isfinite(loss)):
            raise FloatingPointError(
                f"{'the loss' if finite else 'a logit'} is not finite at step {self.step - 1} "
                f"({_words(self.domain_key)}): the adaptation diverged, or the weights "
                "are broken. Try a smaller optimizer.lr; with precision=bf16 or fp16 try fp32"
            )


def _words(place: Mapping[str, Any]) -> str:
    return place["domain"] if place["severity"] is None else f"{place['domain']}, severity {place['severity']}"


def describe(summary: Mapping[str, Any]) -> str:
    """Say in a line what a run came to."""
    visits = summary["domains"]
    domains = len({(visit["domain"], visit["severity"]) for visit in visits})
    skipped = len(summary["skipped"])
    return (
        f"accuracy {100 * summary['accuracy']:.2f} % over {domains} domain(s), "
        f"{f'{len(visits)} visits, ' if len(visits) > domains else ''}{summary['images']} images"
        f"{f' ({skipped} more could not be read: summary.json names them)' if skipped else ''}"
        f" in {summary['seconds']:.0f} s"
    )

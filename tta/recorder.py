"""From predictions to rows: the only place where labels meet logits."""

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

READ_EVERY = {"cpu": 1, "cuda": 16}
"""Batches between two readings of the device: waiting for a GPU after each batch would leave it idle."""


class _UnreadBatch(NamedTuple):
    """A batch whose figures are still on the device: correct, entropy, finite, loss, used."""

    n: int
    figures: Tensor  # float64 (5,)
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
        self.began = self.read_at = time.perf_counter()
        self.pending: list[_UnreadBatch] = []
        self.metrics: DomainMetrics | None = None

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

    def add(self, logits: Tensor, batch: Batch, diagnostics: dict[str, Tensor]) -> None:
        """Take in the predictions of a batch; see ``DomainMetrics.update``."""
        assert self.metrics is not None
        labels = batch.labels.to(self.device, non_blocking=True)
        domain_index = batch.domain_index.to(self.device, non_blocking=True) if len(self.visits) > 1 else None
        counts = self.metrics.update(logits, labels, domain_index)
        missing = counts.correct.new_zeros(())
        figures = (*counts, diagnostics.get("loss", missing), diagnostics.get("used", missing))
        stacked = torch.stack([figure.double() for figure in figures])
        self.pending.append(_UnreadBatch(len(labels), stacked, frozenset(diagnostics)))
        if len(self.pending) >= READ_EVERY[self.device.type]:
            self.flush()

    def flush(self, check: bool = True) -> None:
        """Fetch the pending figures from the device, all at once, and write their rows."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        fetched = torch.stack([p.figures for p in pending]).tolist()
        now = time.perf_counter()
        seconds = (now - self.read_at) / len(pending)  # shared evenly among batches read together
        self.read_at = now
        for (n, _, diagnostics), figures in zip(pending, fetched, strict=True):
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
        """What ``load_state`` continues from; nothing may be pending."""
        now = time.perf_counter()
        state = {
            "domains": self.domains,
            "skipped": self.skipped,
            "count": (self.count.correct, self.count.n),
            "step": self.step,
            "seconds": now - self.began,
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
        self.count = _RunningAccuracy(*state["count"])
        self.began -= state["seconds"]
        if (domain := state["domain"]) is not None:
            self.start_domain([DomainVisit(*visit) for visit in domain["visits"]])
            assert self.metrics is not None
            self.metrics.load_state(domain["metrics"])
            self.domain_count = _RunningAccuracy(*domain["count"])
            self.domain_skipped = domain["skipped"]
            self.domain_started_at -= domain["seconds"]

    def summary(self) -> dict[str, Any]:
        """Figures of the whole run."""
        return {
            "accuracy": sum(row["accuracy"] for row in self.domains) / len(self.domains),
            "online_accuracy": self.count.correct / self.count.n,
            "images": self.count.n,
            "seconds": time.perf_counter() - self.began,
            "skipped": self.skipped,
            "domains": self.domains,
        }

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

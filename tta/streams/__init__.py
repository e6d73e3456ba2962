"""Streams: domains, the order in which they arrive, and the batches that a method sees."""

from tta.streams.base import Batch, Domain, Planned, Stream, Visit
from tta.streams.scenario import Scenario

__all__ = ["Batch", "Domain", "Planned", "Scenario", "Stream", "Visit"]

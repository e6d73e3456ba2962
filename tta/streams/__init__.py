"""Streams: domains, the order in which they arrive, and the batches that a method sees."""

from tta.streams.scenario import Scenario
from tta.streams.stream import Batch, Domain, Loaded, Planned, Stream, Visit

__all__ = ["Batch", "Domain", "Loaded", "Planned", "Scenario", "Stream", "Visit"]

"""Streams: domains, the order in which they arrive, and the batches that a method sees."""

from tta.streams.base import Batch, Domain, Loaded, Planned, Stream, Visit
from tta.streams.scenario import Scenario

__all__ = ["Batch", "Domain", "Loaded", "Planned", "Scenario", "Stream", "Visit"]

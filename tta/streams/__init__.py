"""Streams: domains, the order in which they arrive, and the batches that a method sees."""

from tta.streams.scenario import Scenario
from tta.streams.stream import Stream
from tta.streams.types import Batch, BatchPlan, Domain, DomainVisit, LoadedImages

__all__ = ["Batch", "BatchPlan", "Domain", "DomainVisit", "LoadedImages", "Scenario", "Stream"]

"""What a stream is made of, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

MIXED = "mixed"
"""Name of what arrives where the images of several domains come together."""


class LoadedImages(NamedTuple):
    """Images read for a list of sample indices; those that could not be read are left out and named."""

    images: Tensor  # uint8 (n, 3, H, W)
    kept: Tensor  # int64 (n,): positions in the list asked for
    skipped: tuple[str, ...] = ()


@runtime_checkable
class CacheableImages(Protocol):
    """Images that can be cached as they are read."""

    size: int  # height and width

    def __call__(self, index: Tensor) -> LoadedImages:
        """Read the images of these indices, uint8 (n, 3, size, size)."""

    def cache_key(self, index: Tensor) -> str:
        """Name what their pixels follow from; another name for other pixels."""


@runtime_checkable
class DerivedImages(Protocol):
    """Images that are made of others."""

    clean: Any  # a Readable
    on_device: bool  # they are made where the batch goes, when it is there

    def __call__(self, index: Tensor) -> LoadedImages:
        """Make the images of these indices, uint8 (n, 3, size, size)."""

    def make(self, images: Tensor, index: Tensor) -> Tensor:
        """Make them of the others, uint8 (n, 3, size, size), on the device of those."""

    def recipe(self) -> Mapping[str, Any]:
        """Say what is made of the others."""


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
    load: Callable[[Tensor], LoadedImages]

    def __str__(self) -> str:
        return f"{self.name}-{self.severity}"


class DomainVisit(NamedTuple):
    """A domain that comes, perhaps not for the first time."""

    number: int  # of the domain, in Stream.domains
    domain: str
    severity: int
    visit: int  # 1 when this domain comes at this severity for the first time, then 2 ...


def domain_key(visits: Sequence[DomainVisit]) -> dict[str, Any]:
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
class BatchPlan:
    """A batch to come: which samples of which visit."""

    visits: tuple[DomainVisit, ...]  # those it draws from: one, or all that are mixed together
    domain_index: Tensor  # int64 (n,): the place in visits of each image
    index: Tensor  # int64 (n,): sample indices in the data set
    starts_domain: bool  # it is the first of its visits
    reset: bool


@dataclass(frozen=True)
class Batch:
    """What arrives at one step."""

    images: Tensor  # uint8 (n, 3, H, W)
    labels: Tensor  # int64 (n,)
    visits: tuple[DomainVisit, ...]  # those it draws from: one, or all that are mixed together
    domain_index: Tensor  # int64 (n,): the place in visits of each image
    index: Tensor  # int64 (n,): sample indices in the data set
    starts_domain: bool
    reset: bool  # the method is to be reset before this batch
    skipped: tuple[tuple[int, str], ...]  # images that could not be read, each with the place in visits of its domain

    @property
    def domain(self) -> str:
        """Name of the domain, or ``mixed``."""
        return domain_key(self.visits)["domain"]

    def pin_memory(self) -> Batch:
        """Move what goes to a GPU into page-locked memory; called by those who read ahead."""
        pinned = {name: getattr(self, name).pin_memory() for name in ("images", "labels", "domain_index")}
        return replace(self, **pinned)

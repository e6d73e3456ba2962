"""Scenarios: how domains follow one another, how samples are ordered, when the method is reset.

Pure functions of (seed, domain): the same for every method, whatever randomness the method itself uses.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

RESETS = ("domain", "never")
ORDERS = ("shuffle", "file")


@dataclass(frozen=True)
class Scenario:
    """When the method is reset, and in which order the samples of a domain come.

    Args:
        reset: ``domain`` resets the method before each domain (single-domain protocol, as in Tent, arXiv:2006.10726);
            ``never`` lets it adapt from the first domain to the last (continual protocol, as in CoTTA,
            arXiv:2203.13591).
        order: ``shuffle`` draws an order for each (seed, domain); ``file`` keeps the order of the data set.

    Raises:
        ValueError: for another value.
    """

    reset: str = "domain"
    order: str = "shuffle"

    def __post_init__(self) -> None:
        if self.reset not in RESETS:
            raise ValueError(f"scenario.reset must be one of {', '.join(RESETS)}; got {self.reset!r}")
        if self.order not in ORDERS:
            raise ValueError(f"scenario.order must be one of {', '.join(ORDERS)}; got {self.order!r}")

    def arrange(self, index: Tensor, domain: str, seed: int) -> Tensor:
        """Put the sample indices (N,) of a domain into the order of their arrival."""
        if self.order == "file":
            return index
        return index[torch.randperm(len(index), generator=_generator(seed, domain))]


def _generator(seed: int, domain: str) -> torch.Generator:
    # A hash, so that a domain's order does not depend on which other domains there are, nor on its place among them.
    digest = hashlib.sha256(f"{seed}/{domain}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

"""Counter-based random numbers: what an image gets depends on its own index, never on its neighbours in the batch.

The generator is Philox-4x32-10 of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"
(https://doi.org/10.1145/2063384.2063405), on int64 tensors that hold unsigned 32-bit words.
"""

from __future__ import annotations

import hashlib
import math
import operator

import torch
from torch import Tensor

Words = tuple[Tensor, Tensor, Tensor, Tensor]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Encrypt four counter words (int64 in [0, 2^32), shapes that broadcast) into four random words of that range."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2^64, so shift and mask give the unsigned halves although the sign bit may be set.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (p1 >> 32) & _MASK ^ (c1 ^ k0), (p0 >> 32) & _MASK ^ (c3 ^ k1)
        c1, c3 = p1 & _MASK, p0 & _MASK
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def make_key(seed: int, name: str, severity: int) -> tuple[int, int]:
    """Hash the three into a Philox key, so that no two settings share their streams."""
    digest = hashlib.sha256(f"{operator.index(seed)}/{name}/{severity}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


class Draw:
    """Random numbers for a batch of images, each with its own stream; every call continues all streams.

    ``count`` is N, ``device`` that of the numbers.

    Args:
        key: of the generator, see ``make_key``.
        index: int64 (N,), the stream of each image; its device is that of the numbers.
    """

    def __init__(self, key: tuple[int, int], index: Tensor) -> None:
        self._key = key
        self._low, self._high = (index & _MASK)[:, None], ((index >> 32) & _MASK)[:, None]
        self.count, self.device = len(index), index.device
        self._calls = 0

    def uniform(self, *shape: int) -> Tensor:
        """Return float64 (N, *shape), uniform in the open interval (0, 1): multiples of 2^-32, plus a half."""
        count = math.prod(shape)
        words = torch.cat(self._words(-(-count // 4)), dim=1)[:, :count]
        return words.double().add_(0.5).mul_(2.0**-32).reshape(-1, *shape)

    def normal(self, *shape: int) -> Tensor:
        """Return float64 (N, *shape), standard normal, by the Box-Muller transform of pairs of uniforms."""
        count = math.prod(shape)
        w0, w1, w2, w3 = self._words(-(-count // 4))
        first, second = torch.cat((w0, w2), dim=1).double(), torch.cat((w1, w3), dim=1).double()
        radius = first.add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = second.mul_(2 * math.pi * 2.0**-32)
        normals = torch.cat((radius * angle.cos(), radius * angle.sin()), dim=1)
        return normals[:, :count].reshape(-1, *shape)

    def integers(self, low: int, high: int | Tensor, *shape: int) -> Tensor:
        """Return int64 (N, *shape), uniform in {low, ..., high - 1}; a tensor ``high`` broadcasts against it."""
        return (self.uniform(*shape) * (high - low)).long() + low

    def _words(self, blocks: int) -> Words:
        block = torch.arange(blocks, device=self.device)[None]
        call = torch.full_like(block, self._calls)
        self._calls += 1
        return philox((block, call, self._low, self._high), self._key)

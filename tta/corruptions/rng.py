"""Counter-based random numbers: what an image gets depends on its own index, never on its neighbours in the batch.

The generator is Philox-4x32-10 of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"
(https://doi.org/10.1145/2063384.2063405), on int64 tensors that hold unsigned 32-bit words.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

# A NumPy array or a tensor, see ``_native``.
Word = Any
Words = tuple[Word, ...]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Encrypt four counter words (int64 in [0, 2^32), shapes that broadcast) into four random words of that range.

    The words are NumPy arrays or tensors, and so is what comes back.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        # Of c1 and c3 only the lower halves count, which is what is left of a product.
        c0, c1, c2, c3 = _mix(p1, c1, k0), p1, _mix(p0, c3, k1), p0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


def _mix(product: Word, other: Word, key: int) -> Word:
    """Exclusive-or the upper half of a product with the lower half of a word and with the key."""
    # int64 products wrap modulo 2^64, so shift and mask give the unsigned half although the sign bit may be set.
    mixed = (product >> 32) ^ other
    mixed ^= key
    mixed &= _MASK
    return mixed


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
        self.count, self.device = len(index), index.device
        self._low, self._high = _native((index & _MASK)[:, None]), _native(((index >> 32) & _MASK)[:, None])
        self._calls = 0
        self._prepared: list[Words] = []

    def prepare(self, *counts: int) -> None:
        """Make the numbers of the next calls at once, of so many numbers each: the same as one by one, but faster."""
        blocks = [-(-count // 4) for count in counts]
        words, ends = self._make(blocks), itertools.accumulate(blocks)
        for length, end in zip(blocks, ends, strict=True):
            self._prepared.append(tuple(word[:, end - length : end] for word in words))

    def uniform(self, *shape: int) -> Tensor:
        """Return float64 (N, *shape), uniform in the open interval (0, 1): multiples of 2^-32, plus a half."""
        out = self._lines(*self._words(math.prod(shape)))
        return self._shaped(out.add_(0.5).mul_(2.0**-32), shape)

    def normal(self, *shape: int) -> Tensor:
        """Return float64 (N, *shape), standard normal, by the Box-Muller transform of pairs of uniforms."""
        w0, w1, w2, w3 = self._words(math.prod(shape))
        radius = self._lines(w0, w2).add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = self._lines(w1, w3).mul_(2 * math.pi * 2.0**-32)
        normals = torch.cat((radius * angle.cos(), radius.mul_(angle.sin_())), dim=1)
        return self._shaped(normals, shape)

    def integers(self, low: int, high: int | Tensor, *shape: int) -> Tensor:
        """Return int64 (N, *shape), uniform in {low, ..., high - 1}; a tensor ``high`` broadcasts against it."""
        return (self.uniform(*shape) * (high - low)).long() + low

    def _words(self, count: int) -> Words:
        """Return words (N, B) for so many numbers of each stream, four for each of B blocks."""
        blocks = -(-count // 4)
        words = self._prepared.pop(0) if self._prepared else self._make([blocks])
        if words[0].shape[1] != blocks:
            raise RuntimeError(f"{4 * words[0].shape[1]} numbers were prepared for this call, and {count} are drawn")
        return words

    def _make(self, blocks: list[int]) -> Words:
        """Return the words of so many calls one beside the other."""
        block = torch.cat([torch.arange(length, device=self.device) for length in blocks])
        calls = torch.arange(self._calls, self._calls + len(blocks), device=self.device)
        if len(blocks) > 1:
            calls = torch.cat([call.expand(length) for call, length in zip(calls, blocks, strict=True)])
        self._calls += len(blocks)
        return philox((_native(block[None]), _native(calls[None]), self._low, self._high), self._key)

    def _lines(self, *words: Word) -> Tensor:
        """Return words (N, B) one beside the other, float64 (N, 4B)."""
        if isinstance(words[0], np.ndarray):
            return torch.from_numpy(np.concatenate(words, axis=1, dtype=np.float64))
        return torch.cat(words, dim=1).double()

    @staticmethod
    def _shaped(numbers: Tensor, shape: tuple[int, ...]) -> Tensor:
        return numbers[:, : math.prod(shape)].reshape(-1, *shape)


def _native(word: Tensor) -> Word:
    """Return the same memory as what computes fastest on it: one thread of NumPy is as fast as two of torch."""
    return word.numpy() if word.device.type == "cpu" and torch.get_num_threads() <= 2 else word

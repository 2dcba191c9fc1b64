"""The shuffled order of an epoch, as arithmetic: `sample id = perm(seed, epoch, position)`.

A shuffle that is a table costs memory and start-up time with every sample (minutes at a billion, in several loaders)
and has to be agreed on by all ranks. A keyed permutation has neither: any rank computes any part of the order alone,
in O(1) memory, and the inverse says when a sample is due.

The construction is the generalised Feistel network of Black and Rogaway, "Ciphers with Arbitrary Finite Domains"
(CT-RSA 2002), section 5, on pairs (left, right) of Z_a x Z_b:

    x = left * b + right          a = ceil(sqrt N), b = the next even number from N / a, so a * b >= N
    even round j:  left  <- (left  + F_j(right)) mod a
    odd round j:   right <- (right + F_j(left))  mod b
    a result >= N goes through again (cycle walking; less than 2 / sqrt N of them do)

b is even because a shift by any amount in an odd number of fibres of odd length is an even permutation: with a and b
odd (N = 9, 25, 49, ...) half of all orders could never occur. The number of rounds falls with a: each further pair of
rounds divides what is left of the non-uniformity by about a, and four rounds are measurably not uniform even at
N = 1e9. `F_j` is a multiply-xorshift hash under 128 bits of key, cut from BLAKE2b over (seed, epoch, N, j), so that
seeds and epochs are independent keys: no (seed + 1, epoch) equals a (seed, epoch + 1).

The order is a frozen format (docs/formats.md): a change of any constant here is a new `ORDER_VERSION`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from math import isqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fs3.errors import Invalid

ORDER_VERSION = 1
MAX_SAMPLES = 1 << 62

_MIX_1 = np.uint64(0x9E3779B97F4A7C15)
_MIX_2 = np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)
_ONE = np.uint64(1)
_DOMAIN = b"fs3 sample order"


class Permutation:
    """The order of one epoch: a bijection of [0, num_samples), computed where it is asked."""

    __slots__ = ("_a", "_b", "_keys", "num_samples")

    def __init__(self, num_samples: int, seed: int, epoch: int) -> None:
        """Raises: Invalid if `num_samples` is not in [1, 2^62], or `seed` or `epoch` not in [0, 2^64)."""
        if not 1 <= num_samples <= MAX_SAMPLES:
            raise Invalid(f"an order needs between 1 and 2^62 samples, not {num_samples}")
        for name, value in (("seed", seed), ("epoch", epoch)):
            if not 0 <= value < 1 << 64:
                raise Invalid(f"{name} must be between 0 and 2^64 - 1, not {value}")
        self.num_samples = num_samples
        a, b = halves(num_samples)
        self._a, self._b = np.uint64(a), np.uint64(b)
        self._keys = round_keys(num_samples, seed, epoch)

    def at(self, positions: ArrayLike) -> NDArray[np.int64]:
        """The sample ids at `positions` (int64, any shape, each in [0, num_samples)); same shape.

        Raises: Invalid if a position lies outside.
        """
        return self._walk(positions, self._forward, "position")

    def when(self, sample_ids: ArrayLike) -> NDArray[np.int64]:
        """The positions at which `sample_ids` come: the exact inverse of `at`.

        Raises: Invalid if an id lies outside [0, num_samples).
        """
        return self._walk(sample_ids, self._backward, "sample id")

    def _walk(
        self, values: ArrayLike, step: Callable[[NDArray[np.uint64]], NDArray[np.uint64]], what: str
    ) -> NDArray[np.int64]:
        given = np.asarray(values, dtype=np.int64)
        if given.size and (int(given.min()) < 0 or int(given.max()) >= self.num_samples):
            raise Invalid(f"a {what} must be between 0 and {self.num_samples - 1}, not {given.min()} .. {given.max()}")
        limit = np.uint64(self.num_samples)
        result = step(given.reshape(-1).astype(np.uint64))
        outside = np.flatnonzero(result >= limit)
        while outside.size:
            again = step(result[outside])
            result[outside] = again
            outside = outside[again >= limit]
        return result.astype(np.int64).reshape(given.shape)

    def _forward(self, x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        a, b = self._a, self._b
        left = x // b
        right = x - left * b
        for j, key in enumerate(self._keys):
            if j % 2 == 0:
                left = _remainder(left + _hash(right, key), a)
            else:
                right = _remainder(right + _hash(left, key), b)
        return left * b + right

    def _backward(self, x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        a, b = self._a, self._b
        left = x // b
        right = x - left * b
        for j in range(len(self._keys) - 1, -1, -1):
            if j % 2 == 0:
                left = _remainder(left + (a - _remainder(_hash(right, self._keys[j]), a)), a)
            else:
                right = _remainder(right + (b - _remainder(_hash(left, self._keys[j]), b)), b)
        return left * b + right


def perm(num_samples: int, seed: int, epoch: int, positions: ArrayLike) -> NDArray[np.int64]:
    """The sample ids at `positions` of `epoch`; see `Permutation.at`."""
    return Permutation(num_samples, seed, epoch).at(positions)


def when(num_samples: int, seed: int, epoch: int, sample_ids: ArrayLike) -> NDArray[np.int64]:
    """The positions of `sample_ids` in `epoch`; see `Permutation.when`."""
    return Permutation(num_samples, seed, epoch).when(sample_ids)


def halves(num_samples: int) -> tuple[int, int]:
    """The sizes (a, b) of the two halves: a = ceil(sqrt N), b even, a * b >= N."""
    a = isqrt(num_samples - 1) + 1 if num_samples > 1 else 1
    b = -(-num_samples // a)
    return a, b + b % 2


def num_rounds(num_samples: int) -> int:
    """Enough pairs of rounds that a^-(pairs - 1) is at most 2^-20, and at least three."""
    bits = max(1, halves(num_samples)[0].bit_length() - 1)
    return 2 * max(3, 1 + -(-20 // bits))


@lru_cache(maxsize=64)
def round_keys(num_samples: int, seed: int, epoch: int) -> tuple[tuple[np.uint64, np.uint64], ...]:
    """Two 64-bit words of key for each round, cut from BLAKE2b over (order version, seed, epoch, N, round)."""
    keys = []
    for j in range(num_rounds(num_samples)):
        text = struct.pack("<QQQQQ", ORDER_VERSION, seed, epoch, num_samples, j)
        first, second = struct.unpack("<QQ", blake2b(text, digest_size=16, person=_DOMAIN).digest())
        keys.append((np.uint64(first), np.uint64(second)))
    return tuple(keys)


def _hash(x: NDArray[np.uint64], key: tuple[np.uint64, np.uint64]) -> NDArray[np.uint64]:
    """A keyed hash of each element, below 2^63 so that adding a half (at most 2^31 or so) cannot overflow."""
    z = (x ^ key[0]) * _MIX_1
    z ^= z >> _SHIFT
    z += key[1]
    z *= _MIX_2
    z ^= z >> _SHIFT
    z *= _MIX_1
    z >>= _ONE
    return z


def _remainder(x: NDArray[np.uint64], modulus: np.uint64) -> NDArray[np.uint64]:
    """x mod `modulus` by numpy's division by a constant, which is several times faster than its remainder."""
    return x - (x // modulus) * modulus

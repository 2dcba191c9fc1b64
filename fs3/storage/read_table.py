"""Which targets of a daemon answer reads, as arrays that a batch is looked up in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class ReadTable:
    """Which target answers reads of a chain, indexed by chain id: [largest id + 1]; target 0 is nobody here."""

    target: NDArray[np.uint32]
    version: NDArray[np.uint32]

    @classmethod
    def empty(cls, size: int = 1) -> ReadTable:
        """Nobody, for chains below `size`."""
        return cls(np.zeros(size, dtype=np.uint32), np.zeros(size, dtype=np.uint32))

    def says_the_same(self, other: ReadTable) -> bool:
        """Whether no answer of the two differs."""
        return np.array_equal(self.target, other.target) and np.array_equal(self.version, other.version)

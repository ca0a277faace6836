"""Sets of hashes that are alike, found without comparing every two: MinHash and banding (Broder 1997; Leskovec et al., chapter 3).

A signature keeps, for each of `HASHES` seeded hash functions, the least value over the set; two sets agree at a place with the
probability of their Jaccard similarity. Sets that agree on a whole band are candidates, to be compared exactly, so that whatever is found
is alike; at the threshold or above one is missed with a probability below 1 %.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from counterplay.finetune.gates.words import Hashes

HASHES = 256
_SEED = 20_011
_AT_ONCE = 1 << 12
_MISSED = 0.01


def jaccard(one: Hashes, other: Hashes) -> float:
    """The share of common elements of two sets of distinct hashes; 1.0 for two empty ones."""
    import numpy as np

    common = len(np.intersect1d(one, other, assume_unique=True))
    union = len(one) + len(other) - common
    return common / union if union else 1.0


def rows_per_band(threshold: float) -> int:
    """The longest bands (the fewest candidates) at which a pair exactly at `threshold` is missed with a probability below 1 %."""
    fit = [rows for rows in (2, 4, 8, 16, 32, 64) if (1 - threshold**rows) ** (HASHES // rows) < _MISSED]
    return max(fit, default=1)


class Index:
    """Sets by number, in the order they are added; `like` gives the earlier ones that may be alike, each once, in that order."""

    def __init__(self, threshold: float) -> None:
        import numpy as np

        random = np.random.default_rng(_SEED)
        self._factors = random.integers(0, 1 << 63, HASHES, np.uint64) * np.uint64(2) + np.uint64(1)
        self._terms = random.integers(0, 1 << 63, HASHES, np.uint64)
        self._rows = rows_per_band(threshold)
        self._buckets: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)

    def bands(self, hashes: Hashes) -> list[tuple[int, bytes]]:
        """The bands of a set's signature; none of an empty set, which is like no other."""
        if not len(hashes):
            return []
        found = self._signature(hashes).reshape(-1, self._rows)
        return [(place, band.tobytes()) for place, band in enumerate(found)]

    def like(self, bands: Sequence[tuple[int, bytes]]) -> Iterator[int]:
        yield from sorted({number for band in bands if band in self._buckets for number in self._buckets[band]})

    def add(self, number: int, bands: Sequence[tuple[int, bytes]]) -> None:
        for band in bands:
            self._buckets[band].append(number)

    def _signature(self, hashes: Hashes) -> NDArray[np.uint64]:
        import numpy as np

        least = np.full(HASHES, np.iinfo(np.uint64).max, np.uint64)
        with np.errstate(over="ignore"):
            for start in range(0, len(hashes), _AT_ONCE):
                part = hashes[start : start + _AT_ONCE]
                least = np.minimum(least, (part[:, None] * self._factors + self._terms).min(axis=0))
        return least

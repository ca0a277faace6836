"""Sets of hashes that are alike, found without comparing every two: MinHash and banding (Broder 1997; Leskovec et al., chapter 3).

A signature keeps, for each of `HASHES` seeded hash functions, the least value over the set; two sets agree at a place with the
probability of their Jaccard similarity. Sets that agree on a whole band are candidates, to be compared exactly, so that whatever is found
is alike; at the threshold or above one is missed with a probability below 1 %.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING
from weakref import finalize

from counterplay.finetune.gates.words import mixed
from counterplay.finetune.spool import room_in

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from counterplay.finetune.gates.words import Hashes

HASHES = 256
_SEED = 20_011
_AT_ONCE = 1 << 12
_MISSED = 0.01
_VALUES = 1 << 20


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


class Signer:
    """What stands for a set of hashes: the bands of its signature, 8 bytes each."""

    def __init__(self, threshold: float) -> None:
        import numpy as np

        random = np.random.default_rng(_SEED)
        self._factors = random.integers(0, 1 << 63, HASHES, np.uint64) * np.uint64(2) + np.uint64(1)
        self._terms = random.integers(0, 1 << 63, HASHES, np.uint64)
        self._rows = rows_per_band(threshold)
        self._weights = random.integers(0, 1 << 63, HASHES, np.uint64) * np.uint64(2) + np.uint64(1)

    def of(self, hashes: Hashes) -> Hashes:
        """The bands of a set; none of an empty set, which is like no other."""
        import numpy as np

        if not len(hashes):
            return np.empty(0, np.uint64)
        with np.errstate(over="ignore"):
            spread = mixed(self._signature(hashes) * self._weights)
            found: Hashes = spread.reshape(-1, self._rows).sum(axis=1, dtype=np.uint64)
        return found

    def _signature(self, hashes: Hashes) -> NDArray[np.uint64]:
        import numpy as np

        least = np.full(HASHES, np.iinfo(np.uint64).max, np.uint64)
        with np.errstate(over="ignore"):
            for start in range(0, len(hashes), _AT_ONCE):
                part = hashes[start : start + _AT_ONCE]
                least = np.minimum(least, (part[:, None] * self._factors + self._terms).min(axis=0))
        return least


class Index:
    """Sets by number, in the order they are added; `like` gives the earlier ones that may be alike, each once, by number."""

    def __init__(self, threshold: float) -> None:
        self._signer = Signer(threshold)
        self._buckets: defaultdict[int, list[int]] = defaultdict(list)

    def bands(self, hashes: Hashes) -> list[int]:
        """The bands of a set's signature."""
        found: list[int] = self._signer.of(hashes).tolist()
        return found

    def like(self, bands: Sequence[int]) -> Iterator[int]:
        yield from sorted({number for band in bands if band in self._buckets for number in self._buckets[band]})

    def add(self, number: int, bands: Sequence[int]) -> None:
        for band in bands:
            self._buckets[band].append(number)


class Bands:
    """The bands of many sets, by number, in a file without a name in `folder`; and those that more than one of some sets has."""

    def __init__(self, threshold: float, folder: Path) -> None:
        self._signer, self._folder = Signer(threshold), folder
        self._width = HASHES // rows_per_band(threshold)
        self._numbers, self._filling = array("Q"), array("Q")
        self._file: IO[bytes] | None = None

    def add(self, number: int, hashes: Hashes) -> None:
        """Numbers only rise. An empty set, which is like no other, is not kept."""
        if not len(hashes):
            return
        self._numbers.append(number)
        self._filling.frombytes(self._signer.of(hashes).tobytes())
        if len(self._filling) == _AT_ONCE * self._width:
            with room_in(self._folder):
                if self._file is None:
                    self._file = TemporaryFile(dir=self._folder)  # noqa: SIM115  closed with the bands
                    finalize(self, self._file.close)
                self._filling.tofile(self._file)
            self._filling = array("Q")

    def shared(self, numbers: Sequence[int]) -> dict[int, list[int]]:
        """The bands that each of these sets has in common with another of them; sets without one are not in it."""
        import numpy as np

        wanted = np.asarray(numbers, np.uint64)
        repeated, found = self._repeated(wanted), dict[int, list[int]]()
        for held, table in self._tables(wanted):
            common = np.isin(table, repeated)
            for row in np.flatnonzero(common.any(axis=1)):
                found[int(held[row])] = table[row][common[row]].tolist()
        return found

    def _repeated(self, wanted: Hashes) -> Hashes:
        """The bands that are there more than once: looked for in as many turns as it takes for few to be in memory."""
        import numpy as np

        turns = 1 + len(self._numbers) * self._width // _VALUES
        found = []
        for turn in range(turns):
            mine = [table[table % np.uint64(turns) == turn] for _, table in self._tables(wanted)]
            values, counts = np.unique(np.concatenate(mine or [np.empty(0, np.uint64)]), return_counts=True)
            found.append(values[counts > 1])
        return np.concatenate(found)

    def _tables(self, wanted: Hashes) -> Iterator[tuple[Hashes, Hashes]]:
        """The numbers of some sets and, a row each, their bands: all that are wanted, in several parts."""
        import numpy as np

        if self._file is not None:
            self._file.seek(0)
        for start in range(0, len(self._numbers), _AT_ONCE):
            held = np.array(self._numbers[start : start + _AT_ONCE], np.uint64)
            full = len(held) == _AT_ONCE and self._file is not None
            whole = np.frombuffer(self._file.read(_AT_ONCE * self._width * 8) if full and self._file else self._filling, np.uint64)
            those = np.isin(held, wanted)
            yield held[those], whole.reshape(len(held), self._width)[those]

"""Batches of rows of like length in random order: little padding, and the same order for the same seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

_POOL = 50  # batches shuffled together before they are sorted by length


class LengthBatches:
    """A sampler for a DataLoader: row indices, `batch_size` neighbours of like length. Resuming at an epoch finds the same order.

    Several processes that take turns at equal parts of `batch_size` rows train on one such batch at a time.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = Random(f"{self.seed}/{self.epoch}")
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        pool = _POOL * self.batch_size
        batches: list[list[int]] = []
        for start in range(0, len(order), pool):
            pooled = sorted(order[start : start + pool], key=lambda i: self.lengths[i])
            batches += [pooled[i : i + self.batch_size] for i in range(0, len(pooled), self.batch_size)]
        return _shuffled(batches, self.batch_size, rng)


class FixedBatches:
    """A sampler whose batches are the same `batch_size` neighbours in every epoch, in an order of the epoch's own."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed, self.epoch = count, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        starts = range(0, self.count, self.batch_size)
        batches = [list(range(start, min(start + self.batch_size, self.count))) for start in starts]
        return _shuffled(batches, self.batch_size, Random(f"{self.seed}/{self.epoch}"))


def _shuffled(batches: Sequence[list[int]], batch_size: int, rng: Random) -> Iterator[int]:
    short = [batch for batch in batches if len(batch) < batch_size]
    full = [batch for batch in batches if len(batch) == batch_size]
    rng.shuffle(full)  # the short batch stays last: a DataLoader cuts batches by counting
    return (index for batch in (*full, *short) for index in batch)


def alike(lengths: Sequence[int], labels: Sequence[bool]) -> list[int]:
    """Indices, the longest rows first, in an order in which every stretch holds both labels in the proportion of the whole."""
    places: dict[int, float] = {}
    for wanted in (True, False):
        mine = sorted((i for i, label in enumerate(labels) if bool(label) is wanted), key=lambda i: -lengths[i])
        places.update({index: (rank + 0.5) / len(mine) for rank, index in enumerate(mine)})
    return sorted(places, key=lambda i: places[i])

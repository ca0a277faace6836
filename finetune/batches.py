"""Batches of rows of like length in random order: little padding, and the same order for the same seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

_POOL = 50  # batches shuffled together before they are sorted by length


class LengthBatches:
    """A sampler for a DataLoader: row indices, `batch_size` neighbours of like length. Resuming at an epoch finds the same order."""

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
        short = [batch for batch in batches if len(batch) < self.batch_size]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        rng.shuffle(full)  # the short batch stays last: a DataLoader cuts batches by counting
        return (index for batch in (*full, *short) for index in batch)

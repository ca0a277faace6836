"""What a report counts of the rows of a dataset, each looked at once."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from counterplay.finetune.balance import Balance, Taught, balance
from counterplay.finetune.incoming import Kept

_FLAGS = ("neutralised", "reissued", "fractions", "undefined", "logged")


@dataclass
class Counts:
    """Figures of `card.DatasetReport`, by its names. `probabilities` are those of the rows that have one, in their order."""

    grades: Counter[str] = field(default_factory=Counter)
    algorithms: Counter[str] = field(default_factory=Counter)
    labels: Counter[Any] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    verifiers: set[str] = field(default_factory=set)
    lengths: array[int] = field(default_factory=lambda: array("Q"))
    probabilities: array[float] = field(default_factory=lambda: array("d"))
    balance: Balance | None = None

    @classmethod
    def of(cls, rows: Iterable[Kept]) -> Counts:
        counts = cls()
        counts.balance = balance(counts._counted(rows))
        return counts

    def _counted(self, rows: Iterable[Kept]) -> Iterator[Taught]:
        for row in rows:
            self.grades[row.grade.name.lower()] += 1
            self.algorithms[row.algorithm or "logged"] += 1
            self.labels[row.label] += 1
            self.flags.update(name for name in _FLAGS if getattr(row, name))
            self.verifiers.update(row.verifiers)
            if row.length is not None:
                self.lengths.append(row.length)
            if row.probability is not None:
                self.probabilities.append(row.probability)
            yield row.taught

    @property
    def noticed(self) -> dict[str, int]:
        """In how many rows something was noticed (`records.Made`), and how many were `logged`."""
        return {name: self.flags[name] for name in _FLAGS}

    @property
    def label_noise(self) -> float | None:
        """The mean of 1 - probability; None where there is none, or all are sure."""
        doubts = [1.0 - each for each in self.probabilities]
        return sum(doubts) / len(doubts) if any(doubts) else None

    @property
    def tokens(self) -> dict[str, int] | None:
        """How long rows are; None where they were not measured."""
        if not self.lengths:
            return None
        ordered = sorted(self.lengths)
        ranks = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
        return {**{name: ordered[round(rank * (len(ordered) - 1))] for name, rank in ranks.items()}, "total": sum(ordered)}

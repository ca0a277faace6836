"""How often the 95 % intervals of an evaluation hold the truth, in simulated experiments whose truth is known.

    python bench/coverage.py [--experiments 2000] [--tasks 20,50,100,300] [--bootstrap] [--cells] [--json]

Tasks have success rates of their own: sigmoid(mean + spread z), z standard normal and correlated between the two policies; the mean is
solved so that the expected rate is exactly the stated one. Every cell draws fresh tasks and attempts for every experiment and counts how
often the interval of the library (`counterplay.finetune.intervals`) holds the stated rate or difference. `in band` is the share of cells
with 93 to 97 %. `reachable` is, for one policy with one attempt, the coverage nearest to 95 % that any interval with its bounds in the
order of the successes could have there: counts are discrete. `--bootstrap` adds the
percentile bootstrap for comparison, at spread 2 and with 1,000 experiments (a minute or two more).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from counterplay.finetune.intervals import Array, difference_bounds, rate_bounds, square_and_add

RATES = (0.05, 0.2, 0.5, 0.8, 0.95, 0.98)
PAIRS = ((0.05, 0.05), (0.05, 0.2), (0.2, 0.5), (0.5, 0.5), (0.5, 0.8), (0.8, 0.9), (0.95, 0.95), (0.95, 0.98))
ATTEMPTS = (1, 2, 4)
SPREADS = (0.5, 2.0, 4.0)  # tasks nearly alike, unlike, and nearly all hopeless or mastered
CORRELATIONS = (0.0, 0.6, 0.95)
BAND = (0.93, 0.97)
RESAMPLES, BOOTSTRAPPED = 500, 1000
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(100)


@dataclass(frozen=True)
class Cell:
    """One setting and what was measured. `truth` is the rate or the difference; `reachable` as above, None where not computed."""

    kind: str
    tasks: int
    attempts: int
    spread: float
    rates: tuple[float, ...]
    correlation: float | None
    coverage: float
    width: float
    reachable: float | None = None

    @property
    def inside(self) -> bool:
        return BAND[0] <= self.coverage <= BAND[1]


@cache
def logit_mean(rate: float, spread: float) -> float:
    """The mean m with E[sigmoid(m + spread z)] = rate."""
    low, high = -60.0, 60.0
    for _ in range(80):
        middle = (low + high) / 2
        expected = float((WEIGHTS / WEIGHTS.sum()) @ (1 / (1 + np.exp(-(middle + spread * NODES)))))
        low, high = (middle, high) if expected < rate else (low, middle)
    return (low + high) / 2


def played(
    rng: np.random.Generator, shape: tuple[int, int], rates: Sequence[float], *, spread: float, correlation: float, attempts: int
) -> list[Array]:
    """Mean outcomes of one or two policies on the same tasks, each (experiments, tasks)."""
    first = rng.standard_normal(shape)
    found = []
    for rate in rates:
        z = first if not found else correlation * first + math.sqrt(1 - correlation**2) * rng.standard_normal(shape)
        found.append(rng.binomial(attempts, 1 / (1 + np.exp(-(logit_mean(rate, spread) + spread * z)))) / attempts)
    return found


def held(bounds: tuple[Array, Array], truth: float) -> tuple[float, float]:
    """The share of intervals that hold the truth, and their mean width."""
    low, high = bounds
    slack = 1e-12
    return float(((low <= truth + slack) & (truth - slack <= high)).mean()), float((high - low).mean())


def percentile(values: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """The percentile bootstrap of the mean of each row. Rows with the same values in another order share their resamples."""
    grid = np.unique(values)
    rows, where = np.unique((values[:, :, None] == grid).sum(axis=1), axis=0, return_inverse=True)
    ends = []
    for row in rows:
        means = rng.multinomial(values.shape[1], row / row.sum(), size=RESAMPLES) @ grid / values.shape[1]
        ends.append(np.quantile(means, [0.025, 0.975]))
    low, high = np.array(ends)[where.ravel()].T
    return low, high


def reachable(rate: float, tasks: int) -> float:
    """The probability of consecutive numbers of successes, with the likeliest among them, that is nearest to 0.95."""
    log = [math.lgamma(tasks + 1) - math.lgamma(k + 1) - math.lgamma(tasks - k + 1) for k in range(tasks + 1)]
    p = np.exp(np.array([log[k] + k * math.log(rate) + (tasks - k) * math.log1p(-rate) for k in range(tasks + 1)]))
    total = np.concatenate([[0.0], p.cumsum()])
    top = int(p.argmax())
    sums = (total[top + 1 :][None, :] - total[: top + 1][:, None]).ravel()
    return float(sums[np.abs(sums - 0.95).argmin()])


def cells(experiments: int, tasks: Sequence[int], *, bootstrap: bool, attempts: Sequence[int] = ATTEMPTS) -> Iterator[Cell]:
    """Every cell of the grid. Its random numbers depend on the cell alone."""
    for n, m, rate in itertools.product(tasks, attempts, RATES):
        for spread in SPREADS if m > 1 else (2.0,):
            rng = np.random.default_rng(zlib.crc32(repr(("rate", n, m, rate, spread)).encode()))
            (values,) = played(rng, (experiments, n), (rate,), spread=spread, correlation=0.0, attempts=m)
            where = n, m, spread, (rate,), None
            yield Cell("rate", *where, *held(rate_bounds(values), rate), reachable(rate, n) if m == 1 else None)
            if bootstrap and spread == 2:
                yield Cell("rate, bootstrap", *where, *held(percentile(values[:BOOTSTRAPPED], rng), rate))
    for n, m, rates, correlation in itertools.product(tasks, attempts, PAIRS, CORRELATIONS):
        for spread in SPREADS if m > 1 else (2.0,):
            rng = np.random.default_rng(zlib.crc32(repr(("pair", n, m, rates, correlation, spread)).encode()))
            before, after = played(rng, (experiments, n), rates, spread=spread, correlation=correlation, attempts=m)
            truth, where = rates[1] - rates[0], (n, m, spread, rates, correlation)
            yield Cell("difference", *where, *held(difference_bounds(before, after), truth))
            if m == 1:
                yield Cell("difference, square-and-add", *where, *held(square_and_add(before, after), truth))
            if bootstrap and spread == 2:
                yield Cell("difference, bootstrap", *where, *held(percentile((after - before)[:BOOTSTRAPPED], rng), truth))


def summary(found: Sequence[Cell]) -> list[dict[str, object]]:
    """One row for each kind, number of attempts and number of tasks."""
    rows = []
    for kind, m, n in sorted({(cell.kind, cell.attempts, cell.tasks) for cell in found}):
        here = [cell for cell in found if (cell.kind, cell.attempts, cell.tasks) == (kind, m, n)]
        covered = np.array([cell.coverage for cell in here])
        rows.append(
            {
                "interval": kind,
                "attempts": m,
                "tasks": n,
                "cells": len(here),
                "mean": float(covered.mean()),
                "lowest": float(covered.min()),
                "highest": float(covered.max()),
                "below": int((covered < BAND[0]).sum()),
                "above": int((covered > BAND[1]).sum()),
                "in_band": float(np.mean([cell.inside for cell in here])),
                "width": float(np.mean([cell.width for cell in here])),
            }
        )
    return rows


def show(rows: Sequence[dict[str, object]], found: Sequence[Cell], *, every_cell: bool) -> None:
    print("| interval | attempts | tasks | cells | mean | lowest | highest | below 93 % | above 97 % | mean width |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        covered = " | ".join(f"{100 * float(str(row[name])):.1f} %" for name in ("mean", "lowest", "highest"))
        print(f"| {row['interval']} | {row['attempts']} | {row['tasks']} | {row['cells']} | {covered} | ", end="")
        print(f"{row['below']} | {row['above']} | {float(str(row['width'])):.3f} |")
    outside = [cell for cell in found if not cell.inside and "," not in cell.kind]
    print(f"\n{len(outside)} of {sum(',' not in cell.kind for cell in found)} cells outside 93-97 %", end="")
    print(": --cells lists them" if not every_cell else ":")
    for cell in sorted(outside, key=lambda cell: cell.coverage) if every_cell else ():
        rates = " and ".join(map(str, cell.rates))
        why = "" if cell.reachable is None else f", nearest reachable {100 * cell.reachable:.1f} %"
        where = f"{cell.kind}, {cell.tasks} tasks, {cell.attempts} attempts, rates {rates}, spread {cell.spread:g}"
        print(f"  {100 * cell.coverage:5.1f} %  {where}{'' if cell.correlation is None else f', correlation {cell.correlation:g}'}{why}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--experiments", type=int, default=2000)
    parser.add_argument("--tasks", default="20,50,100,300")
    parser.add_argument("--bootstrap", action="store_true")
    parser.add_argument("--cells", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = list(cells(given.experiments, [int(n) for n in given.tasks.split(",")], bootstrap=given.bootstrap))
    rows = summary(found)
    if given.json:
        print(json.dumps({"experiments": given.experiments, "summary": rows, "cells": [asdict(cell) for cell in found]}))
    else:
        show(rows, found, every_cell=given.cells)


if __name__ == "__main__":
    main()

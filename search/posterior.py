"""What probes say about where a run went wrong: posteriors over one error, or over two, with the success rates summed out.

A probe of length t is a number of lines played on from the prefix of t steps. Lines from before the first error succeed at a rate
p_ok, from after the last at p_bad, from between two at p_mid. None of them is known, so each is summed over a grid; one error and
two are weighed by their evidence, P(probes | one) against P(probes | two).
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import mul
from typing import TypeAlias

from counterplay.core.errors import UserError

P_OK = tuple(0.05 + 0.92 * i / 23 for i in range(24))
P_BAD = tuple(0.002 * 250 ** (i / 15) for i in range(16))
P_MID = P_OK[1::2]
MIN_FALL = 0.15
"""What each of two errors costs at least, in success rate; smaller differences are one error told twice."""

_BAD_BELOW_OK = [sum(bad < ok for bad in P_BAD) for ok in P_OK]
_BAD_BELOW_MID = [sum(bad <= mid - MIN_FALL for bad in P_BAD) for mid in P_MID]
_OK_ABOVE_MID = [sum(ok >= mid + MIN_FALL for ok in P_OK) for mid in P_MID]
_PAIRS, _TRIPLES = sum(_BAD_BELOW_OK), sum(map(mul, _OK_ABOVE_MID, _BAD_BELOW_MID))
_LOG_OK, _LOG_BAD, _LOG_MID = (tuple((math.log(p), math.log(1 - p)) for p in grid) for grid in (P_OK, P_BAD, P_MID))
_Grid: TypeAlias = tuple[tuple[float, float], ...]
_Scaled: TypeAlias = tuple[list[float], float]


@dataclass(frozen=True)
class Probe:
    """`value` of `lines` lines of play (a sum of scores in [0, 1]) from the prefix of `length` steps. `logged`: other logged runs."""

    length: int
    lines: int
    value: float
    logged: bool = False


@dataclass(frozen=True)
class Belief:
    """`posteriors` has one distribution over the steps for each error, in order; `log_evidence` is ln P(probes | so many errors)."""

    log_evidence: float
    posteriors: tuple[tuple[float, ...], ...]

    @property
    def unsure(self) -> int:
        """Which error is known least: 0, or 1 for the second of two."""
        return min(range(len(self.posteriors)), key=lambda error: max(self.posteriors[error]))

    @property
    def mass(self) -> float:
        """What the likeliest step of the error that is known least holds."""
        return max(self.posteriors[self.unsure])


@dataclass(frozen=True)
class Tally:
    """Probes summed by length: `won[k]` and `lost[k]` are of all lines from the first k of the sorted `lengths`."""

    lengths: tuple[int, ...]
    won: tuple[float, ...]
    lost: tuple[float, ...]

    @classmethod
    def of(cls, probes: Sequence[Probe]) -> Tally:
        lengths = sorted({probe.length for probe in probes})
        values = [math.fsum(probe.value for probe in probes if probe.length == length) for length in lengths]
        lines = [sum(probe.lines for probe in probes if probe.length == length) for length in lengths]
        lost = [n - value for n, value in zip(lines, values, strict=True)]
        return cls(tuple(lengths), tuple(accumulate(values, initial=0.0)), tuple(accumulate(lost, initial=0.0)))

    def groups(self, steps: int) -> dict[int, list[int]]:
        """Steps that no probe tells apart, by how many of the lengths end before an error there: those of at most `step` steps do."""
        groups: dict[int, list[int]] = {}
        for step in range(steps):
            groups.setdefault(bisect_right(self.lengths, step), []).append(step)
        return groups

    def likelihoods(self, grid: _Grid, first: int, last: int) -> _Scaled:
        """p^won (1 - p)^lost at each rate p, for lines from lengths number `first` to `last` - 1; over their maximum, and its log."""
        won, lost = self.won[last] - self.won[first], self.lost[last] - self.lost[first]
        logs = [won * log_p + lost * log_q for log_p, log_q in grid]
        top = max(logs)
        return [math.exp(log - top) for log in logs], top

    @cached_property
    def heads(self) -> list[_Scaled]:
        """`likelihoods` under p_ok of the first k lengths."""
        return [self.likelihoods(_LOG_OK, 0, k) for k in range(len(self.won))]

    @cached_property
    def tails(self) -> list[_Scaled]:
        """`likelihoods` under p_bad of all but the first k lengths."""
        return [self.likelihoods(_LOG_BAD, k, len(self.lengths)) for k in range(len(self.won))]

    @cached_property
    def heads_above(self) -> list[list[float]]:
        """`heads` summed over the rates far enough above each p_mid."""
        return [_first(head[::-1], _OK_ABOVE_MID) for head, _ in self.heads]

    @cached_property
    def tails_below(self) -> list[list[float]]:
        """`tails` summed over the rates far enough below each p_mid."""
        return [_first(tail, _BAD_BELOW_MID) for tail, _ in self.tails]


def one_error(tally: Tally, prior: Sequence[float]) -> Belief:
    """P(e | probes) ~ prior(e) sum_{p_bad < p_ok} prod_t p_t^s_t (1 - p_t)^(n_t - s_t), p_t = p_ok for t <= e and p_bad for t > e."""
    logs = [0.0] * len(prior)
    for k, steps in tally.groups(len(prior)).items():
        (head, head_log), (tail, tail_log) = tally.heads[k], tally.tails[k]
        log = _log(sum(map(mul, head, _first(tail, _BAD_BELOW_OK))) / _PAIRS) + head_log + tail_log
        for step in steps:
            logs[step] = log + _log(prior[step])
    return Belief(_log_sum(logs), (_normalised(logs),))


def two_errors(tally: Tally, prior: Sequence[float]) -> Belief:
    """The same for two errors e < f, P(e, f) ~ prior(e) prior(f), with p_t = p_mid for e < t <= f and falls of at least `MIN_FALL`.

    `posteriors` are the marginals of e and f. Needs two steps of prior mass, else the evidence is zero.
    """
    groups = tally.groups(len(prior))
    logs = {(i, j): _two_log(tally, i, j) for i in groups for j in groups if i <= j}
    masses = {k: _log(sum(prior[step] for step in steps)) for k, steps in groups.items()}
    first, second = [0.0] * len(prior), [0.0] * len(prior)
    for k, steps in groups.items():
        f_later = _log_sum([logs[k, j] + masses[j] for j in groups if j > k])
        e_earlier = _log_sum([logs[i, k] + masses[i] for i in groups if i < k])
        for at, step in enumerate(steps):
            f_here, e_here = (logs[k, k] + _log(sum(prior[s] for s in part)) for part in (steps[at + 1 :], steps[:at]))
            first[step] = _log(prior[step]) + _log_sum([f_later, f_here])
            second[step] = _log(prior[step]) + _log_sum([e_earlier, e_here])
    pairs = (1 - sum(mass * mass for mass in prior)) / 2
    if pairs < 1e-12 or max(first) == -math.inf:
        return Belief(-math.inf, (tuple(prior), tuple(prior)))
    return Belief(_log_sum(first) - _log(pairs), (_normalised(first), _normalised(second)))


def _two_log(tally: Tally, i: int, j: int) -> float:
    """The log of the mean likelihood over p_ok > p_mid > p_bad, the first i lengths before both errors, those from j on after."""
    middle, log = tally.likelihoods(_LOG_MID, i, j)
    mean = sum(map(mul, map(mul, tally.heads_above[i], middle), tally.tails_below[j])) / _TRIPLES
    return _log(mean) + log + tally.heads[i][1] + tally.tails[j][1]


def probability_of_two(one: Belief, two: Belief, prior: float) -> float:
    """P(two errors | probes) from the evidence and the prior probability of two, in [0, 1]."""
    if prior in (0.0, 1.0) or two.log_evidence == -math.inf:
        return 1.0 if prior == 1.0 else 0.0
    log_odds = two.log_evidence - one.log_evidence + math.log(prior / (1 - prior))
    return 1 / (1 + math.exp(-max(-500.0, min(500.0, log_odds))))


def prior_of(log_odds: Sequence[float] | None, length: int) -> list[float]:
    """A distribution over steps from log-odds, even where None. Raises UserError where they are not one for each step."""
    if log_odds is None:
        return [1 / length] * length
    if len(log_odds) != length:
        raise UserError(f"got {len(log_odds)} prior log-odds", f"one for each of the {length} steps")
    weights = [1 / (1 + math.exp(-max(-30.0, min(30.0, value)))) for value in log_odds]
    return [weight / sum(weights) for weight in weights]


def next_probe(posterior: Sequence[float], generator: random.Random) -> int:
    """The prefix length to probe: where the posterior's cumulated mass is nearest to a random .35-.65 quantile.

    So a step that holds most of the mass is probed on both its sides, where the even split would ask one side over and over.
    """
    quantile = generator.uniform(0.35, 0.65)
    before = 0.0
    for step, mass in enumerate(posterior):
        if before + mass >= quantile:
            return step + 1 if step + 1 < len(posterior) and quantile - before > before + mass - quantile else step
        before += mass
    return len(posterior) - 1


def _first(weights: Sequence[float], counts: Sequence[int]) -> list[float]:
    """The sum of the first n weights for each n of `counts`."""
    sums = [0.0, *accumulate(weights)]
    return [sums[n] for n in counts]


def _normalised(logs: Sequence[float]) -> tuple[float, ...]:
    total = _log_sum(logs)
    return tuple(math.exp(log - total) for log in logs)


def _log_sum(logs: Sequence[float]) -> float:
    top = max(logs, default=-math.inf)
    return top + math.log(sum(math.exp(log - top) for log in logs)) if top > -math.inf else -math.inf


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf

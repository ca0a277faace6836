"""Ways to find the pivotal step by probing prefixes: Bayesian bisection, and three slower ones to compare it with.

`bayes` bisects the posterior of the error with unknown rates (noisy binary search: Horstein 1963; Waeber, Frazier & Henderson 2013).
`omega` halves where no line succeeds (OmegaPRM, Luo et al. 2024), right only for agents that never recover; `threshold` halves at half
the success rate of the start; `every` plays from every prefix (Monte Carlo labels, Math-Shepherd, Wang et al. 2024).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, TypeAlias

from counterplay.core.errors import UserError
from counterplay.search.posterior import Belief, Tally, next_probe, one_error, probability_of_two, two_errors
from counterplay.search.probing import Localisation, Prober

Method: TypeAlias = Literal["bayes", "threshold", "omega", "every"]
_KNOWN = 2 / 3
"""The probability at which the number of errors is taken for known."""


@dataclass(frozen=True)
class Bisection:
    """How to bisect. `lines_per_probe` None is the method's own. `max_lines`, `mass`, `min_p_ok` and `p_two` are of `bayes`.

    `mass` is the posterior mass on one step at which it is found; `min_p_ok` the success rate from the start below which nothing is
    cheap and the search is refused; `p_two` the prior probability of two errors, 0 for one alone.
    """

    method: Method = "bayes"
    root_lines: int = 16
    lines_per_probe: int | None = None
    max_lines: int = 240
    mass: float = 0.9
    min_p_ok: float = 0.3
    p_two: float = 0.2
    seed: int = 0


async def bayes(prober: Prober, prior: Sequence[float], config: Bisection) -> Localisation:
    """The start first; then a few lines at a time where they split the posterior, until one step, or one of each error, holds `mass`."""
    p_ok = await _rate_from_the_start(prober, config)
    if p_ok is None:
        return prober.undetermined("no line of play from the start was scored")
    if p_ok < config.min_p_ok:
        reason = f"success rate {p_ok:.2f} from the start is below {config.min_p_ok:g}: the run fails before any single step decides it"
        return prober.undetermined(reason, p_ok)
    generator, lines = random.Random(config.seed), config.lines_per_probe or 2
    ask_at = config.max_lines / 2
    belief, p_two = weigh(prober, prior, config, asked=False)
    while not _settled(belief, p_two, config) and prober.played < config.max_lines and prober.running:
        error = belief.unsure if belief.mass < config.mass else generator.randrange(len(belief.posteriors))
        where = next_probe(belief.posteriors[error], generator)
        if not await prober.play([where], min(lines, config.max_lines - prober.played)):
            break
        belief, p_two = weigh(prober, prior, config, asked=len(belief.posteriors) == 2 or prober.played >= ask_at)
        ask_at += config.max_lines / 8 if prober.played >= ask_at else 0
    return verdict(prober, prior, config, p_ok)


async def every(prober: Prober, prior: Sequence[float], config: Bisection) -> Localisation:
    """Play from every prefix but the bare prompt; the same posterior over what came of it, for one error."""
    await prober.play(range(1, prober.steps), config.lines_per_probe or 8)
    if not prober.probes:
        return prober.undetermined("no line of play was scored")
    return verdict(prober, prior, replace(config, p_two=0.0), None)


async def omega(prober: Prober, _prior: Sequence[float], config: Bisection) -> Localisation:
    """Halve: the error lies after a prefix from which any line succeeds, and before one from which none does."""
    return await _halve(prober, config.lines_per_probe or 8, 0.0, None)


async def threshold(prober: Prober, _prior: Sequence[float], config: Bisection) -> Localisation:
    """Halve at half of the success rate of the start: the error lies after a prefix from which lines succeed more often than that."""
    lines = config.lines_per_probe or 24
    p_ok = await prober.start(lines)
    if not p_ok:
        return prober.undetermined("no line of play from the start succeeded", p_ok)
    return await _halve(prober, lines, p_ok / 2, p_ok)


METHODS: Mapping[str, Callable[[Prober, Sequence[float], Bisection], Awaitable[Localisation]]] = MappingProxyType(
    {"bayes": bayes, "threshold": threshold, "omega": omega, "every": every}
)


def method_of(name: str) -> Callable[[Prober, Sequence[float], Bisection], Awaitable[Localisation]]:
    """The method of this name. Raises UserError where there is none."""
    if name not in METHODS:
        raise UserError(f"got method {name!r}", f"one of {', '.join(METHODS)}")
    return METHODS[name]


async def _rate_from_the_start(prober: Prober, config: Bisection) -> float | None:
    """From `root_lines` lines, logged runs among them; up to three times as many where the rate is near enough to `min_p_ok` to pass."""
    p_ok = await prober.start(config.root_lines)
    for lines in range(config.root_lines + config.root_lines // 2, 3 * config.root_lines + 1, max(1, config.root_lines // 2)):
        if p_ok is None or not config.min_p_ok / 2 <= p_ok < config.min_p_ok:
            break
        p_ok = await prober.start(lines)
    return p_ok


async def _halve(prober: Prober, lines: int, rate: float, p_ok: float | None) -> Localisation:
    """The step between the longest prefix that is good, with a success rate above `rate`, and the shortest that is not."""
    good, bad = 0, prober.steps
    while bad - good > 1:
        middle = (good + bad) // 2
        found = await prober.fill(middle, lines)
        if found is None:
            return prober.undetermined(f"undetermined: no line of play from step {middle} was scored", p_ok)
        good, bad = (middle, bad) if found > rate else (good, middle)
    reason = f"lines succeed more often than {rate:.2f} before step {good} and not after it"
    return Localisation(good, (), p_ok, tuple(prober.probes), reason, prober.path.tree)


def weigh(
    prober: Prober, prior: Sequence[float], config: Bisection, *, asked: bool, least: float = 1 - _KNOWN
) -> tuple[Belief, float | None]:
    """What the probes say, and the probability that there are two errors; two are believed where it exceeds `least`.

    It is None, and one error believed, where neither that one is known nor the question `asked`: two can't be told from one before.
    """
    tally = Tally.of(prober.probes)
    one = one_error(tally, prior)
    if not config.p_two or not (asked or one.mass >= config.mass):
        return one, None
    two = two_errors(tally, prior)
    p_two = probability_of_two(one, two, config.p_two)
    return (two if p_two > least else one), p_two


def _settled(belief: Belief, p_two: float | None, config: Bisection) -> bool:
    return belief.mass >= config.mass and (p_two is None or max(p_two, 1 - p_two) >= _KNOWN)


def verdict(prober: Prober, prior: Sequence[float], config: Bisection, p_ok: float | None) -> Localisation:
    """What all probes together say, by the likelier number of errors."""
    belief, p_two = weigh(prober, prior, config, asked=True, least=0.5)
    likeliest = [max(range(len(masses)), key=masses.__getitem__) for masses in belief.posteriors]
    masses = [max(masses) for masses in belief.posteriors]
    held = ", ".join(f"step {step} holds {mass:.0%}" for step, mass in zip(likeliest, masses, strict=True))
    held = f"two errors ({p_two:.0%}): {held}" if len(likeliest) == 2 else held
    reason = held if belief.mass >= config.mass else f"undetermined: {held}"
    if belief.mass < config.mass and prober.engine.exhausted:
        reason += f" ({prober.engine.exhausted})"
    found = [step if mass >= config.mass else None for step, mass in zip(likeliest, masses, strict=True)]
    return Localisation(
        step=found[0],
        posterior=belief.posteriors[0],
        p_ok=p_ok,
        probes=tuple(prober.probes),
        reason=reason,
        tree=prober.path.tree,
        second=found[1] if len(found) == 2 else None,
        second_posterior=belief.posteriors[1] if len(found) == 2 else (),
        p_two=p_two,
    )

"""Which step of a failed run was the pivotal one: after it, success is no longer to be expected.

A step e is pivotal where prefixes that end before it succeed at a rate p_ok and prefixes that hold it at a lower rate p_bad.
Both rates are unknown: agents recover from errors and fail without them, so neither is 0 or 1. `localise` finds e by Bayesian
bisection (noisy binary search: Horstein 1963; Waeber, Frazier & Henderson 2013), where OmegaPRM (Luo et al. 2024) halves at
the first failed probe, which is right only for p_bad = 0. `first_drop` asks a process verifier instead and plays nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import Trajectory
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.engine import Engine, OnWave
from counterplay.search.logged import LoggedPath, horizon, logged_path, logged_reward, score_log
from counterplay.search.rollout import play_out, score_lines
from counterplay.search.tree import SearchTree

P_OK = tuple(0.05 + 0.92 * i / 23 for i in range(24))
P_BAD = tuple(0.002 * 250 ** (i / 15) for i in range(16))


@dataclass(frozen=True)
class Probe:
    """`value` of `lines` lines of play (a sum of scores in [0, 1]) from the prefix of `length` steps. `logged`: other logged runs."""

    length: int
    lines: int
    value: float
    logged: bool = False


@dataclass(frozen=True)
class Localisation:
    """`step` is the pivotal step's index, None where undetermined; `posterior` the probability of every step, empty without one.

    `p_ok` is the estimated success rate before the error, None where it was not estimated. `reason` says how it ended. `tree`
    holds every line that was played, for they are counterfactuals as good as any; None where nothing was.
    """

    step: int | None
    posterior: tuple[float, ...]
    p_ok: float | None
    probes: tuple[Probe, ...]
    reason: str
    tree: SearchTree | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Bisection:
    """How to bisect. `mass` is the posterior mass on one step at which it is found; `min_p_ok` the root success rate below which
    nothing is cheap and the search is refused; `prior_log_odds` one number for each step, from a process verifier or judge.
    """

    root_lines: int = 16
    lines_per_probe: int = 4
    max_lines: int = 240
    mass: float = 0.9
    min_p_ok: float = 0.3
    prior_log_odds: Sequence[float] | None = None
    siblings: Sequence[Trajectory] = ()
    seed: int = 0


async def localise(
    trajectory: Trajectory,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    root_lines: int = 16,
    lines_per_probe: int = 4,
    max_lines: int = 240,
    mass: float = 0.9,
    min_p_ok: float = 0.3,
    prior_log_odds: Sequence[float] | None = None,
    siblings: Sequence[Trajectory] = (),
    max_steps: int | None = None,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> Localisation:
    """Find the pivotal step of a failed run by playing on from its prefixes.

    P(e | probes) is proportional to prior(e) sum over rates p_bad < p_ok of prod_t p_t^s_t (1 - p_t)^(n_t - s_t), with p_t = p_ok
    for prefixes of t <= e steps and p_bad for longer ones. First the root is estimated with `root_lines`; then, at a random
    .35-.65 quantile of the posterior (the exact median stalls), `lines_per_probe` more lines at a time, until one step holds
    `mass`. `siblings` are other logged runs of the task, each a free probe of the longest prefix it shares.
    """
    config = Bisection(root_lines, lines_per_probe, max_lines, mass, min_p_ok, prior_log_odds, siblings, seed)
    limit = horizon(trajectory, max_steps)
    path = logged_path(trajectory, "localise", {"mass": mass, "max_lines": max_lines, "max_steps": limit, "seed": seed})
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=limit, on_wave=on_wave)
    await score_log(engine, path)
    found = await bisect(engine, path, config)
    engine.finish(path.tree, found.reason)
    return found


async def bisect(engine: Engine, path: LoggedPath, config: Bisection) -> Localisation:
    """`localise` on a logged path whose end is scored, in a tree and with an engine that are already there."""
    length = len(path.nodes) - 1
    prior = _prior(config.prior_log_odds, length)
    if path.end.score is not None and path.end.score.value >= 0.5:
        return Localisation(None, (), None, (), "the run succeeded, so no step was pivotal", path.tree)
    probes = free_probes(path.end.state, config.siblings)
    await _probe(engine, path, probes, 0, config.root_lines)
    at_root = [probe for probe in probes if probe.length == 0]
    lines, value = sum(probe.lines for probe in at_root), sum(probe.value for probe in at_root)
    if not lines:
        return Localisation(
            None, (), None, tuple(probes), f"no line of play from the root was scored {engine.exhausted}".strip(), path.tree
        )
    p_ok = value / lines
    if p_ok < config.min_p_ok:
        reason = f"success rate {p_ok:.2f} from the start is below {config.min_p_ok:g}: the run fails before any single step decides it"
        return Localisation(None, (), p_ok, tuple(probes), reason, path.tree)
    posterior = posterior_of(probes, prior)
    generator = random.Random(config.seed)
    while max(posterior) < config.mass and _played(probes) < config.max_lines and engine.running(path.tree):
        where = next_probe(posterior, generator)
        if not await _probe(engine, path, probes, where, config.lines_per_probe):
            break
        posterior = posterior_of(probes, prior)
    best = max(range(length), key=lambda e: posterior[e])
    found = posterior[best] >= config.mass
    reason = f"step {best} holds {posterior[best]:.0%}" if found else f"undetermined: step {best} holds only {posterior[best]:.0%}"
    if not found and engine.exhausted:
        reason += f" ({engine.exhausted})"
    return Localisation(best if found else None, tuple(posterior), p_ok, tuple(probes), reason, path.tree)


def posterior_of(probes: Sequence[Probe], prior: Sequence[float]) -> list[float]:
    """P(e | probes) for every step e, the two rates summed out over a grid (p_ok .05-.97, p_bad .002-.5, p_bad < p_ok)."""
    value: dict[int, list[float]] = {}
    for probe in probes:
        tally = value.setdefault(probe.length, [0.0, 0.0])
        tally[0] += probe.value
        tally[1] += probe.lines - probe.value
    won, lost = sum(v for v, _ in value.values()), sum(v for _, v in value.values())
    before_won = before_lost = 0.0
    logs: list[float] = []
    known = -math.inf
    for e in range(len(prior)):
        if e in value or e == 0:
            before_won += value.get(e, (0.0, 0.0))[0]
            before_lost += value.get(e, (0.0, 0.0))[1]
            known = _log_likelihood(before_won, before_lost, won - before_won, lost - before_lost)
        logs.append(known + math.log(prior[e]) if prior[e] > 0 else -math.inf)
    highest = max(logs)
    masses = [math.exp(log - highest) for log in logs]
    total = sum(masses)
    return [mass / total for mass in masses]


def _log_likelihood(won_ok: float, lost_ok: float, won_bad: float, lost_bad: float) -> float:
    """The logarithm of sum over p_bad < p_ok of p_ok^won_ok (1 - p_ok)^lost_ok p_bad^won_bad (1 - p_bad)^lost_bad."""
    ok = [won_ok * math.log(p) + lost_ok * math.log(1 - p) for p in P_OK]
    bad = [won_bad * math.log(p) + lost_bad * math.log(1 - p) for p in P_BAD]
    top_ok, top_bad = max(ok), max(bad)
    total, below, k = 0.0, 0.0, 0
    for p, log in zip(P_OK, ok, strict=True):
        while k < len(P_BAD) and P_BAD[k] < p:
            below += math.exp(bad[k] - top_bad)
            k += 1
        total += math.exp(log - top_ok) * below
    return top_ok + top_bad + (math.log(total) if total > 0 else -math.inf)


def next_probe(posterior: Sequence[float], generator: random.Random) -> int:
    """The prefix length to probe: the step at a random .35-.65 quantile, before or after it, whichever splits the mass more evenly."""
    quantile = generator.uniform(0.35, 0.65)
    mass_before = 0.0
    for step, mass in enumerate(posterior):
        if mass_before + mass >= quantile:
            after = mass_before + mass
            split_after = step + 1 < len(posterior) and abs(after - 0.5) <= abs(mass_before - 0.5)
            return step + 1 if split_after else step
        mass_before += mass
    return len(posterior) - 1


def free_probes(trajectory: Trajectory, siblings: Sequence[Trajectory]) -> list[Probe]:
    """Other logged runs of one task as probes: each with a logged reward tells about the longest prefix it shares."""
    probes = []
    for other in siblings:
        reward = logged_reward(other)
        if reward is None or other.root_key != trajectory.root_key or other.prompt != trajectory.prompt:
            continue
        shared = 0
        while shared < min(len(other), len(trajectory)) and other.steps[shared].messages == trajectory.steps[shared].messages:
            shared += 1
        if shared < len(trajectory):
            probes.append(Probe(shared, 1, reward, logged=True))
    return probes


async def _probe(engine: Engine, path: LoggedPath, probes: list[Probe], length: int, lines: int) -> int:
    """Play lines from a prefix and note what came of those that ended in a score. Returns their number."""
    start = path.nodes[length]
    before = (start.visits, start.value_sum)
    ends = await play_out(engine, path.tree, [start] * lines)
    await score_lines(engine, [(start, end) for end in ends])
    scored, value = start.visits - before[0], start.value_sum - before[1]
    if scored:
        probes.append(Probe(length, scored, value))
    engine.after_wave(path.tree)
    return scored


def _played(probes: Sequence[Probe]) -> int:
    return sum(probe.lines for probe in probes if not probe.logged)


def _prior(log_odds: Sequence[float] | None, length: int) -> list[float]:
    if log_odds is None:
        return [1 / length] * length
    if len(log_odds) != length:
        raise UserError(f"got {len(log_odds)} prior log-odds", f"one for each of the {length} steps")
    odds = [math.exp(max(-30.0, min(30.0, value))) for value in log_odds]
    weights = [value / (1 + value) for value in odds]
    return [weight / sum(weights) for weight in weights]


async def first_drop(trajectory: Trajectory, verifier: Verifier, *, min_drop: float = 0.2, concurrency: int = 64) -> Localisation:
    """The step at which a process verifier's value falls most, the first of equals; one pass over the prefixes, nothing is played.

    The posterior is each step's share of all falls, (v_t - v_{t+1})^+ normalised. Undetermined where no fall reaches `min_drop`
    or the verifier has no opinion on two prefixes. Prefixes without an opinion are stepped over. Raises VerifierError where
    every question fails.
    """
    path = logged_path(trajectory, "first_drop")
    engine = Engine(None, None, verifier, Budget(), concurrency=concurrency)
    await engine.score(path.nodes)
    falls = [0.0] * len(trajectory)
    previous = path.nodes[0].score
    for step, node in enumerate(path.nodes[1:]):
        if node.score is not None and previous is not None:
            falls[step] = max(0.0, previous.value - node.score.value)
        previous = node.score or previous
    total = sum(falls)
    posterior = tuple(fall / total for fall in falls) if total else ()
    best = max(range(len(falls)), key=lambda t: falls[t])
    if falls[best] < min_drop:
        return Localisation(None, posterior, None, (), f"undetermined: the value never falls by {min_drop:g}", path.tree)
    return Localisation(best, posterior, None, (), f"the value falls by {falls[best]:.2f} at step {best}", path.tree)

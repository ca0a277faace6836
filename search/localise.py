"""Which step of a failed run was the pivotal one: after it, success is no longer to be expected.

A step e is pivotal where prefixes that end before it succeed at a rate p_ok and prefixes that hold it at a lower rate p_bad.
Both rates are unknown: agents recover from errors and fail without them, so neither is 0 or 1. `localise` plays on from prefixes
and finds e by bisection (`bisection.py`); `first_drop` asks a process verifier instead and plays nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import Trajectory
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.bisection import Bisection, Method, method_of
from counterplay.search.engine import Engine, OnWave
from counterplay.search.logged import LoggedPath, horizon, logged_path, score_log
from counterplay.search.posterior import prior_of
from counterplay.search.probing import Localisation, Prober, free_probes

__all__ = ["Bisection", "Localisation", "bisect", "first_drop", "localise", "log_odds_of"]


async def localise(
    trajectory: Trajectory,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    method: Method = "bayes",
    root_lines: int = 16,
    lines_per_probe: int | None = None,
    max_lines: int = 240,
    mass: float = 0.9,
    min_p_ok: float = 0.3,
    p_two: float = 0.2,
    prior_log_odds: Sequence[float] | None = None,
    process_verifier: Verifier | None = None,
    siblings: Sequence[Trajectory] = (),
    max_steps: int | None = None,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> Localisation:
    """Find the pivotal step of a failed run by playing on from its prefixes.

    P(e | probes) is proportional to prior(e) sum over rates p_bad < p_ok of prod_t p_t^s_t (1 - p_t)^(n_t - s_t), with p_t = p_ok
    for prefixes of t <= e steps and p_bad for longer ones. First the start is estimated with `root_lines`; then, at a random
    .35-.65 quantile of the posterior (the exact median stalls), `lines_per_probe` more lines at a time, until one step holds `mass`.
    Two errors with a third rate between them are weighed against one from there on, their prior probability being `p_two` (0: one alone).

    `prior_log_odds` is an opinion of each step, one number each; `process_verifier` gives one by where its value falls. `siblings` are
    other logged runs of the task, each a probe that costs nothing of the longest prefix it shares. `method` is "bayes", or one of the
    slower references: "threshold" (24 lines a probe), "omega" (8), "every" (8 from every prefix).
    """
    config = Bisection(method, root_lines, lines_per_probe, max_lines, mass, min_p_ok, p_two, seed)
    _check(config)
    limit = horizon(trajectory, max_steps)
    options = {"method": method, "mass": mass, "max_lines": max_lines, "max_steps": limit, "seed": seed}
    path = logged_path(trajectory, "localise", options)
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=limit, on_wave=on_wave)
    await score_log(engine, path)
    prior = prior_of(prior_log_odds, len(trajectory))
    if process_verifier is not None:
        opinion = prior_of(log_odds_of(await first_drop(trajectory, process_verifier, concurrency=concurrency)), len(trajectory))
        both = [own * other for own, other in zip(prior, opinion, strict=True)]
        prior = [share / sum(both) for share in both]
    found = await bisect(engine, path, config, prior=prior, siblings=siblings)
    engine.finish(path.tree, found.reason)
    return found


async def bisect(
    engine: Engine, path: LoggedPath, config: Bisection, *, prior: Sequence[float] | None = None, siblings: Sequence[Trajectory] = ()
) -> Localisation:
    """`localise` in a tree and with an engine that are there; the end of `path` is scored. `prior` sums to 1, None is even."""
    if path.end.score is not None and path.end.score.value >= 0.5:
        return Localisation(None, (), None, (), "the run succeeded, so no step was pivotal", path.tree)
    prober = Prober(engine, path, await free_probes(engine, path.end.state, siblings))
    return await method_of(config.method)(prober, prior or prior_of(None, prober.steps), config)


def _check(config: Bisection) -> None:
    method_of(config.method)
    wrong = {
        "root_lines": config.root_lines < 1,
        "lines_per_probe": config.lines_per_probe is not None and config.lines_per_probe < 1,
        "mass": not 0.5 < config.mass < 1,
        "min_p_ok": not 0 <= config.min_p_ok < 1,
        "p_two": not 0 <= config.p_two < 1,
    }
    for name in (name for name, bad in wrong.items() if bad):
        raise UserError(f"got {name}={getattr(config, name)}", "lines of at least 1, mass above 0.5, probabilities below 1")


def log_odds_of(found: Localisation, *, trust: float = 0.5) -> list[float] | None:
    """A posterior as prior log-odds for another localisation: with probability `trust` it is right, else every step is as likely.

    So an opinion that is wrong costs at most log2 1 / (1 - trust) bits. None where there is no posterior.
    """
    if not 0 <= trust < 1:
        raise UserError(f"got trust={trust}", "a probability below 1")
    even = (1 - trust) / max(1, len(found.posterior))
    shares = [min(max(even + trust * mass, 1e-12), 1 - 1e-12) for mass in found.posterior]
    return [math.log(share / (1 - share)) for share in shares] or None


async def first_drop(trajectory: Trajectory, verifier: Verifier, *, min_drop: float = 0.2, concurrency: int = 64) -> Localisation:
    """The step at which a process verifier's value falls most, the first of equals; one pass over the prefixes, nothing is played.

    The posterior is each step's share of all falls, (v_t - v_{t+1})^+ normalised. Undetermined where no fall reaches `min_drop`
    or the verifier has no opinion on two prefixes. Prefixes without an opinion are stepped over. Raises VerifierError where
    every question fails.
    """
    path = logged_path(trajectory, "first_drop")
    engine = Engine(None, None, verifier, Budget(), concurrency=concurrency)
    await engine.score(path.nodes)
    falls = falls_of([None if node.score is None else node.score.value for node in path.nodes])
    total = sum(falls)
    posterior = tuple(fall / total for fall in falls) if total else ()
    best = max(range(len(falls)), key=lambda t: falls[t])
    if falls[best] < min_drop:
        return Localisation(None, posterior, None, (), f"undetermined: the value never falls by {min_drop:g}", path.tree)
    return Localisation(best, posterior, None, (), f"the value falls by {falls[best]:.2f} at step {best}", path.tree)


def falls_of(values: Sequence[float | None]) -> list[float]:
    """How far the value falls at each step, (v_t - v_{t+1})^+; `values` are of all prefixes, None without an opinion, stepped over."""
    falls = [0.0] * (len(values) - 1)
    previous = values[0]
    for step, value in enumerate(values[1:]):
        if value is not None and previous is not None:
            falls[step] = max(0.0, previous - value)
        previous = previous if value is None else value
    return falls

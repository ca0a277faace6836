"""Where to branch: strategies that rank the steps of a logged run by how much an alternative there may bring, and say why.

Each is a function of the run and of what it has to know about it, and gives forks, best first. `pivot`, `value_drop`, `tool_error`,
`entropy` and `rare_state` leave out steps that nothing speaks for; `every` has them all. `choose` finds out what a strategy needs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeAlias, get_args

from counterplay.core.budget import KINDS
from counterplay.core.errors import BudgetExceeded, UserError
from counterplay.core.nouns import Proposal, Trajectory
from counterplay.core.tool_errors import is_error
from counterplay.search.archive import groups
from counterplay.search.draws import FailedProposal
from counterplay.search.engine import Engine
from counterplay.search.localise import Bisection, Localisation, bisect, falls_of
from counterplay.search.logged import LoggedPath

Strategy: TypeAlias = Literal["pivot", "value_drop", "tool_error", "entropy", "every", "rare_state"]


@dataclass(frozen=True, slots=True)
class Fork:
    """A step to branch before. `weight` is above 0 and comparable within one strategy; `reason` is for a person."""

    step: int
    weight: float
    reason: str


def pivot(trajectory: Trajectory, found: Localisation) -> list[Fork]:
    """By the probability of being the pivotal step; where two errors were found, of being either."""
    second = found.second_posterior or (0.0,) * len(trajectory)
    masses = found.posterior or tuple(float(t == found.step) for t in range(len(trajectory)))
    return _ranked((t, max(pair), f"pivotal with probability {max(pair):.2f}") for t, pair in enumerate(zip(masses, second, strict=True)))


def value_drop(_trajectory: Trajectory, values: Sequence[float | None]) -> list[Fork]:
    """By how far a process verifier's value falls, (v_t - v_{t+1})^+. `values` are of all prefixes, the bare prompt first."""
    return _ranked((t, fall, f"the value falls by {fall:.2f}") for t, fall in enumerate(falls_of(values)))


def tool_error(trajectory: Trajectory) -> list[Fork]:
    """By the share of the step's calls that failed; of equals, steps whose action had not failed before come first, then earlier ones.

    A repeated failure weighs half as much each time.
    """
    seen: Counter[str] = Counter()
    forks = []
    for t, step in enumerate(trajectory.steps):
        failed = [message for message in step.observations if message.role == "tool" and is_error(message)]
        if not failed and step.error is None:
            continue
        said = step.error or " ".join(failed[0].content_text.split())[:80]
        share = len(failed) / max(1, len(step.action.tool_calls)) if failed else 1.0
        forks.append((t, min(1.0, share) / 2 ** seen[step.action.signature], f"a call failed: {said}"))
        seen[step.action.signature] += 1
    return _ranked(forks)


def entropy(_trajectory: Trajectory, draws: Mapping[int, Sequence[Proposal]], logprobs: Mapping[int, float] | None = None) -> list[Fork]:
    """By how undecided the policy was, in nats: the mean of -log P over the draws of a step, where all of them have a log-probability.

    Else the entropy of the draws by action signature, H = -sum q ln q + (K - 1) / 2n (Miller and Madow), for K different actions
    among n. Steps without draws: -log P of the logged action, from `logprobs` by step. The three are not mixed: the first that is known
    for every step that has any is used, else the second. Calls that failed are no draws.
    """
    answered = {t: [proposal for proposal in here if not isinstance(proposal, FailedProposal)] for t, here in draws.items()}
    drawn = {t: here for t, here in answered.items() if here}
    if not drawn:
        return _ranked((t, -log, f"the logged action had log-probability {log:.2f}") for t, log in sorted((logprobs or {}).items()))
    exact = all(proposal.logprob is not None for here in drawn.values() for proposal in here)
    forks = []
    for t, here in sorted(drawn.items()):
        counts = Counter(proposal.action.signature for proposal in here)
        nats = -sum(proposal.logprob or 0.0 for proposal in here) / len(here) if exact else _entropy(counts)
        forks.append((t, nats, f"{len(counts)} different actions in {len(here)} draws, {nats:.2f} nats"))
    return _ranked(forks)


def _entropy(counts: Counter[str]) -> float:
    n = counts.total()
    return -sum(count / n * math.log(count / n) for count in counts.values()) + (len(counts) - 1) / (2 * n)


def every(trajectory: Trajectory) -> list[Fork]:
    """All steps alike, ordered so that the first k of them are spread over the run, the first step foremost (van der Corput)."""
    bits = max(1, (len(trajectory) - 1).bit_length())
    order = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(2**bits))
    return [Fork(t, 1.0, "every step") for t in order if t < len(trajectory)]


def rare_state(trajectory: Trajectory, others: Sequence[Trajectory], *, window: int = 2) -> list[Fork]:
    """By how seldom the state before the step was seen in the logged runs `others`, this one among them or not: weight 1 / visits.

    States are grouped by what was done last, the names of the tools of the last `window` actions; a run visits a group once.
    """
    known = any(other is trajectory or (other.key == trajectory.key and other == trajectory) for other in others)
    runs = others if known else [trajectory, *others]
    visits = Counter(chain.from_iterable(set(groups(run, window)) for run in runs))
    weights = enumerate(groups(trajectory, window))
    return _ranked((t, 1 / visits[group], f"{visits[group]} of {len(runs)} runs were in such a state") for t, group in weights)


def _ranked(found: Iterable[tuple[int, float, str]]) -> list[Fork]:
    """Forks of (step, weight, reason) with a weight above 0, heaviest first, of equals the earliest."""
    return sorted((Fork(*each) for each in found if each[1] > 0), key=lambda fork: (-fork.weight, fork.step))


async def choose(
    engine: Engine, path: LoggedPath, strategy: Strategy, *, draws: int = 4, others: Sequence[Trajectory] = (), seed: int = 0
) -> list[Fork]:
    """The forks of one strategy, for which the engine asks what it has to know under its budget.

    `pivot` plays lines (`localise`), `value_drop` asks the verifier about every prefix, `entropy` samples `draws` actions before every
    step (fewer, and before steps that are spread over the run, where the budget does not last), `rare_state` reads `others`. What they play
    and draw takes at most half of what is left of the budget, so that there is something to branch with. Empty where nothing was found.
    Raises UserError on an unknown strategy.
    """
    trajectory = path.end.state
    if strategy == "pivot":
        with _half_kept(engine):
            found = await bisect(engine, path, Bisection(seed=seed), siblings=others)
        return pivot(trajectory, found)
    if strategy == "value_drop":
        await engine.score([node for node in path.nodes if node.score is None])
        return value_drop(trajectory, [None if node.score is None else node.score.value for node in path.nodes])
    if strategy == "entropy":
        return entropy(trajectory, await _drawn(engine, path, draws))
    if strategy == "rare_state":
        return rare_state(trajectory, others)
    if strategy not in get_args(Strategy):
        raise UserError(f"got strategy {strategy!r}", f"one of {', '.join(get_args(Strategy))}")
    return tool_error(trajectory) if strategy == "tool_error" else every(trajectory)


async def _drawn(engine: Engine, path: LoggedPath, draws: int) -> dict[int, Sequence[Proposal]]:
    """Draws before the steps of a run. Where the budget does not last for all of them it is spread: fewer draws a step, at least two,
    then fewer steps, at even distances over the run, so that no part of it goes unseen.
    """
    with _half_kept(engine):
        left = engine.budget.left("model_calls")
        steps = [fork.step for fork in every(path.end.state)]
        n = draws if left >= draws * len(steps) else min(draws, max(2, int(left) // len(steps)))
        seen = steps[: max(1, int(left) // n)] if left < math.inf else steps
        answers = await engine.propose([(path.nodes[step], n) for step in seen])
    return dict(zip(seen, answers, strict=True))


@contextmanager
def _half_kept(engine: Engine) -> Iterator[None]:
    """Inside, half of what is left of every limit but time can't be used; that it ran out there ends nothing outside."""
    budget, exhausted = engine.budget, engine.exhausted
    left = {kind: budget.left(kind) for kind in KINDS if kind != "seconds"}
    half = {kind: amount / 2 if kind == "usd" else float(math.ceil(amount / 2)) for kind, amount in left.items() if amount < math.inf}
    try:
        kept = budget.reserve(**half)
    except BudgetExceeded:  # the time is over: nothing can be asked
        yield
        return
    try:
        yield
    finally:
        kept.settle(None, **dict.fromkeys(half, 0.0))
        engine.exhausted = exhausted

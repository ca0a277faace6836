"""Fork-BoN: alternatives at the steps that mattered, each played to the end. The sensible default for runs of 50-100 steps.

A full tree over a long run is unaffordable; a few forks of it cost k lines of play each, and the siblings at a fork, the
logged action among them, get values that can be compared. Compare Nebius 2024, "Leveraging training and search for better
software engineering agents"; Setlur et al. 2024, "RL on Incorrect Synthetic Data" (pairs at the pivotal step).
"""

from __future__ import annotations

from collections.abc import Sequence

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import State
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.bounds import check_bounds
from counterplay.search.branching import Strategy, choose
from counterplay.search.engine import Engine, OnWave
from counterplay.search.logged import LoggedPath, horizon, logged_path, score_log
from counterplay.search.rollout import advance, play_out, score_lines
from counterplay.search.tree import Node, SearchTree


async def fork_best_of_n(
    state: State,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    n: int = 4,
    pivots: Sequence[int] | None = None,
    num_pivots: int = 3,
    localisation: Strategy = "value_drop",
    siblings: Sequence[State] = (),
    rollouts_per_alternative: int = 1,
    max_steps: int | None = None,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """`state` is a logged run. Draw `n` actions before each pivot step, play each distinct one to the end `rollouts_per_alternative` times.

    The logged action is an alternative like the others, its log being one of its lines. A line is backed up to the action it
    was played for and not above the fork: lines from later forks are no fair samples of the actions before them. So the N and W
    of siblings at a pivot are counts of a posterior Beta(1 + W, 1 + N - W).

    `pivots` are step indices; where None, `num_pivots` are chosen by `localisation`, a strategy of `branching.py`: "value_drop" the
    largest falls of a process verifier's value, "pivot" the likeliest steps by Bayesian bisection with rollouts (`localise`),
    "tool_error" failed calls, "entropy" where the policy is undecided, "rare_state" where few `siblings` (other logged runs of the
    task) have been, "every" even distances; all fall back on the last. `max_steps` counts from the prompt; None is twice the log, at
    least 20.
    """
    check_bounds({"n": n, "num_pivots": num_pivots, "rollouts_per_alternative": rollouts_per_alternative})
    limit = horizon(state, max_steps)
    config = {
        "n": n,
        "pivots": None if pivots is None else list(pivots),
        "num_pivots": num_pivots,
        "localisation": localisation,
        "rollouts_per_alternative": rollouts_per_alternative,
        "max_steps": limit,
        "seed": seed,
    }
    path = logged_path(state, "fork_best_of_n", config)
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=limit, on_wave=on_wave)
    await score_log(engine, path)
    if pivots is not None:
        chosen, why = _checked(pivots, state), ""
    else:
        chosen, why = await choose_pivots(engine, path, num_pivots, localisation, seed=seed, siblings=siblings)
    await expand(engine, path, chosen, n, rollouts_per_alternative)
    return engine.finish(path.tree, f"forked at {', '.join(map(str, chosen))}{why}")


async def expand(engine: Engine, path: LoggedPath, pivots: Sequence[int], n: int, rollouts_per_alternative: int) -> None:
    forks = [path.nodes[pivot] for pivot in pivots]
    await advance(engine, path.tree, [(fork, n) for fork in forks])
    engine.after_wave(path.tree)
    starts = [child for fork in forks for child in fork.children for _ in range(_missing(child, rollouts_per_alternative))]
    ends = await play_out(engine, path.tree, starts)
    await score_lines(engine, list(zip(starts, ends, strict=True)))


def _missing(child: Node, rollouts_per_alternative: int) -> int:
    return rollouts_per_alternative - 1 if child.logged else rollouts_per_alternative


def _checked(pivots: Sequence[int], state: State) -> list[int]:
    wrong = [pivot for pivot in pivots if not 0 <= pivot < len(state)]
    if wrong:
        raise UserError(f"got pivot {wrong[0]}", f"a step of this run, 0 to {len(state) - 1}")
    return sorted(set(pivots))


async def choose_pivots(
    engine: Engine, path: LoggedPath, count: int, localisation: Strategy, *, seed: int = 0, siblings: Sequence[State] = ()
) -> tuple[list[int], str]:
    """The steps to fork at, in order, and what is to be said about them: that a strategy found none, and they are spread evenly."""
    forks = await choose(engine, path, localisation, others=siblings, seed=seed)
    if forks and localisation != "every":
        return sorted(fork.step for fork in forks[:count]), ""
    return spread(len(path.end.state), count), "" if localisation == "every" else f", even distances: {localisation} found no step"


def spread(length: int, count: int) -> list[int]:
    """`count` steps at even distances over a run of `length` steps, the first step among them; all of them where it is shorter."""
    if count >= length:
        return list(range(length))
    return sorted({i * length // count for i in range(count)})

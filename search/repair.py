"""Repair: go back to the first error a process verifier sees, try something else from there, keep the best line, and repeat.

Local refinement from the first error (Havrilla et al. 2024, "GLoRe"), with the environment executing every alternative. Where a
run holds several errors, sampling whole lines finds them all right at once with the product of small probabilities;
repair needs each only once. One round costs about as much as fork-BoN at `lookback` + 1 steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import State
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.branching import Strategy, choose
from counterplay.search.engine import Engine, OnWave
from counterplay.search.logged import LoggedPath, horizon, logged_path, score_log
from counterplay.search.rollout import advance, play_out, score_lines
from counterplay.search.tree import Node, SearchTree


async def repair(
    state: State,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    n: int = 6,
    lookback: int = 3,
    rounds: int = 3,
    rollouts_per_alternative: int = 1,
    gate: float = 1.0,
    min_drop: float = 0.2,
    localisation: Strategy = "value_drop",
    siblings: Sequence[State] = (),
    max_steps: int | None = None,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """`state` is a logged run. For up to `rounds`: fork the best line where its value first falls, keep the best line; stop at `gate`.

    The value falls at the first step t with v_t - v_{t+1} >= `min_drop`; with another `localisation`, a strategy of `branching.py`, the
    step it puts first is forked (`siblings` are other logged runs of the task). A fall that a round did not mend is left for the line's
    next one, for a noisy verifier's first fall is often no error, and comes again, with new draws, after them. Verifiers often see an
    error only after it was made, so the `lookback` steps before it are forked as well; at each fork `n` actions are drawn, and
    where they differ each is played to the end `rollouts_per_alternative` times. Lines are ranked by the score of their end, then by how
    late they first fall. A line is backed up to the action it was played for, not above the fork, so siblings' N and W are counts of a
    posterior.
    `max_steps` counts from the prompt; None is twice the log, at least 20.
    """
    if n < 1 or rounds < 1 or rollouts_per_alternative < 1 or lookback < 0:
        got = f"n={n}, rounds={rounds}, rollouts_per_alternative={rollouts_per_alternative}, lookback={lookback}"
        raise UserError(f"got {got}", "lookback of at least 0 and the others at least 1")
    limit = horizon(state, max_steps)
    config = {
        "n": n,
        "lookback": lookback,
        "rounds": rounds,
        "rollouts_per_alternative": rollouts_per_alternative,
        "gate": gate,
        "min_drop": min_drop,
        "localisation": localisation,
        "max_steps": limit,
        "seed": seed,
    }
    path = logged_path(state, "repair", config)
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=limit, on_wave=on_wave)
    await score_log(engine, path)
    best, tried = path.end, Counter[int]()
    for _ in range(rounds):
        steps = (
            await falls(engine, best, min_drop)
            if localisation == "value_drop"
            else await ranked(engine, path.tree, best, localisation, seed=seed, siblings=siblings)
        )
        pivot = least_tried(best, steps, tried)
        blind = localisation == "value_drop" and all(node.score is None for node in path.nodes[:-1])
        if pivot is None and worth(best) < gate and blind:
            return engine.finish(path.tree, "the verifier has no opinion on unfinished runs, and repair needs one that has")
        if pivot is None and worth(best) < gate:
            return engine.finish(path.tree, f"{localisation} found no step to go back to")
        if pivot is None or not engine.running(path.tree):
            break
        forks = best.path()[max(0, pivot - lookback) : pivot + 1]
        tried[forks[-1].index] += 1
        ends = await refine(engine, path.tree, forks, n, rollouts_per_alternative)
        best = await select(engine, [best, *ends], min_drop)
        if worth(best) >= gate:
            return engine.finish(path.tree, f"a line scored {worth(best):g}")
    return engine.finish(path.tree, "no line of the last round reached the gate")


async def falls(engine: Engine, end: Node, min_drop: float) -> list[int]:
    """The steps t of the line to `end` at which v_t - v_{t+1} >= `min_drop`, in order."""
    line = end.path()
    await engine.score([node for node in line if node.score is None])
    found, previous = list[int](), None
    for t, node in enumerate(line):
        if node.score is None:
            continue
        if previous is not None and previous - node.score.value >= min_drop:
            found.append(t - 1)
        previous = node.score.value
    return found


async def ranked(engine: Engine, tree: SearchTree, end: Node, localisation: Strategy, *, seed: int, siblings: Sequence[State]) -> list[int]:
    """The steps of the line to `end` as a strategy puts them, the foremost first; none where nothing speaks for any."""
    forks = await choose(engine, LoggedPath(tree, tuple(end.path())), localisation, others=siblings, seed=seed)
    return [fork.step for fork in forks]


def least_tried(end: Node, steps: Sequence[int], tried: Counter[int]) -> int | None:
    """The step of the line to `end` at whose state the fewest rounds have begun, the first of equals; None without steps."""
    line = end.path()
    return min(steps, key=lambda step: tried[line[step].index], default=None)


async def refine(engine: Engine, tree: SearchTree, forks: Sequence[Node], n: int, rollouts: int) -> list[Node]:
    """Draw `n` actions in each fork and play every alternative to the end. Returns the ends of the lines."""
    await advance(engine, tree, [(fork, n) for fork in forks])
    engine.after_wave(tree)
    contested = [fork for fork in forks if len(fork.children) > 1]
    starts = [child for fork in contested for child in fork.children for _ in range(max(0, rollouts - child.visits))]
    ends = await play_out(engine, tree, starts)
    await score_lines(engine, list(zip(starts, ends, strict=True)))
    return list({end.index: end for end in ends if end.finished}.values())


async def select(engine: Engine, ends: Sequence[Node], min_drop: float) -> Node:
    """The end with the highest score; of equals the one whose line falls last, then the earliest found."""
    top = max(worth(end) for end in ends)
    equals = [end for end in ends if worth(end) == top]
    firsts = [(next(iter(await falls(engine, end, min_drop)), len(end.path())), -end.index, end) for end in equals]
    return max(firsts, key=lambda found: found[:2])[2]


def worth(end: Node) -> float:
    """The score of a line's end; 0 without one, for a line nobody vouches for is not kept over one somebody does."""
    return 0.0 if end.score is None else end.score.value

"""Repair: go back to the first error a process verifier sees, try something else from there, keep the best line, and repeat.

Local refinement from the first error (Havrilla et al. 2024, "GLoRe"), with the environment executing every alternative. Where a
run holds several errors, sampling whole lines finds them all right at once with the product of small probabilities;
repair needs each only once. One round costs about as much as fork-BoN at `lookback` + 1 steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import State
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.engine import Engine, OnWave
from counterplay.search.logged import horizon, logged_path, score_log
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
    max_steps: int | None = None,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """`state` is a logged run. For up to `rounds`: fork the best line where its value first falls, keep the best line; stop at `gate`.

    The value falls at the first step t with v_t - v_{t+1} >= `min_drop`. Verifiers often see an error only after it was made,
    so the `lookback` steps before it are forked as well; at each fork `n` actions are drawn, and where they differ each is played to the
    end `rollouts_per_alternative` times. Lines are ranked by the score of their end, then by how late they first fall. A line is
    backed up to the action it was played for, not above the fork, so siblings' N and W are counts of a posterior.
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
        "max_steps": limit,
        "seed": seed,
    }
    path = logged_path(state, "repair", config)
    engine = Engine(policy, environment, verifier, budget, concurrency=concurrency, max_steps=limit, on_wave=on_wave)
    await score_log(engine, path)
    best = path.end
    for _ in range(rounds):
        pivot = await first_fall(engine, best, min_drop)
        if pivot is None and worth(best) < gate and all(node.score is None for node in path.nodes[:-1]):
            return engine.finish(path.tree, "the verifier has no opinion on unfinished runs, and repair needs one that has")
        if pivot is None or not engine.running(path.tree):
            break
        ends = await refine(engine, path.tree, best.path()[max(0, pivot - lookback) : pivot + 1], n, rollouts_per_alternative)
        best = await select(engine, [best, *ends], min_drop)
        if worth(best) >= gate:
            return engine.finish(path.tree, f"a line scored {worth(best):g}")
    return engine.finish(path.tree, "no line of the last round reached the gate")


async def first_fall(engine: Engine, end: Node, min_drop: float) -> int | None:
    """The first step t of the line to `end` at which v_t - v_{t+1} >= `min_drop`; None where the value never falls so far."""
    line = end.path()
    await engine.score([node for node in line if node.score is None])
    previous = None
    for t, node in enumerate(line):
        if node.score is None:
            continue
        if previous is not None and previous - node.score.value >= min_drop:
            return t - 1
        previous = node.score.value
    return None


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
    falls = [(await first_fall(engine, end, min_drop), end) for end in equals]
    return max(falls, key=lambda found: (len(found[1].path()) if found[0] is None else found[0], -found[1].index))[1]


def worth(end: Node) -> float:
    """The score of a line's end; 0 without one, for a line nobody vouches for is not kept over one somebody does."""
    return 0.0 if end.score is None else end.score.value

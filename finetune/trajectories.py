"""SFT rows: whole trajectories that ended well, found by a search or logged (the control)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from counterplay.core.nouns import Grade, Trace, Trajectory
from counterplay.finetune.rows import Drop, Harvest, Lineage, SFTRow, SourcedTree, too_low, verifiers_of, well_formed, whole_prompts
from counterplay.search.tree import Node, SearchTree


def sft_rows(
    trees: Iterable[SourcedTree],
    *,
    min_score: float = 1.0,
    min_grade: Grade = Grade.EXECUTED,
    per_tree: int = 1,
    train_prefix: bool = True,
) -> Harvest[SFTRow]:
    """The best finished leaves of every tree, as whole trajectories (rejection sampling; RFT, arXiv:2308.01825).

    A leaf counts with its score, and without one with the reward of its last step, in [0, 1]; it is taken from `min_score` on.
    At most `per_tree` leaves that differ in what they do are taken from a tree, best first. `train_prefix=False` trains only
    on steps below the fork.
    """
    rows, drops = [], []
    for tree in trees:
        leaves, reason = _passing(tree.tree, min_score, min_grade)
        taken = list(_distinct(leaves))[:per_tree]
        made = [_leaf_row(tree, leaf, train_prefix=train_prefix) for leaf in taken]
        rows += [row for row in made if any(row.trained)]
        drops += [Drop("no step was sampled from a prompt known whole", row.name) for row in made if not any(row.trained)]
        if not taken:
            drops.append(Drop(reason, tree.name))
    return Harvest(tuple(rows), tuple(drops))


def logged_rows(traces: Iterable[Trace], *, min_reward: float = 1.0, min_grade: Grade = Grade.EXECUTED) -> Harvest[SFTRow]:
    """Logged successes as they are: the control that counterfactual data must beat.

    A success has a reward of at least `min_reward`, or was called one where no reward was logged. Contexts that continue the main one after
    a compaction are rows of their own; sub-agents' contexts are left out. A trace that was itself re-enacted keeps its grade, and is
    held to `min_grade`; a stale one never leaves.
    """
    rows, drops = [], []
    for trace in traces:
        outcome = trace.outcome
        good = outcome.success is not False and (outcome.reward >= min_reward if outcome.reward is not None else outcome.success is True)
        if not good:
            unknown = outcome.reward is None and outcome.success is None
            drops.append(Drop("the outcome is unknown" if unknown else "the logged run did not succeed", trace.id))
            continue
        contexts = [
            (0, trace.trajectory),
            *((i, sub.trajectory) for i, sub in enumerate(trace.sub_trajectories, 1) if sub.continues is not None),
        ]
        drops += [Drop("a sub-agent's context", f"{trace.id}/{sub.agent}") for sub in trace.sub_trajectories if sub.continues is None]
        for index, trajectory in contexts:
            row = _logged_row(trace, trajectory, whole_prompts(trace, index))
            reason = too_low(trajectory.grade, min_grade) or ("" if any(row.trained) else "no step was sampled from a prompt known whole")
            if reason:
                drops.append(Drop(reason, row.name))
            else:
                rows.append(row)
    return Harvest(tuple(rows), tuple(drops))


def _logged_row(trace: Trace, trajectory: Trajectory, whole: Sequence[bool]) -> SFTRow:
    sessions = () if trace.session is None else (trace.session,)
    verifiers = tuple(sorted({f"{score.name}@" for score in trace.scores if score.name}))
    lineage = Lineage(trace.task, (trace.id,), sessions, nodes=(trajectory.key,), verifiers=verifiers, grade=trajectory.grade, logged=True)
    return SFTRow(trajectory.messages, _trained(trajectory, whole), trajectory.tools, trace.outcome.reward, lineage)


def _leaf_row(source: SourcedTree, leaf: Node, *, train_prefix: bool) -> SFTRow:
    first = 0 if train_prefix else len(source.tree.root.state)
    trained = _trained(leaf.state, source.whole(leaf.state), first)
    lineage = replace(
        source.lineage,
        nodes=(leaf.state.key,),
        verifiers=tuple(sorted(verifiers_of(leaf))),
        grade=leaf.state.grade,
        logged=all(node.logged for node in leaf.path()[1:]),
    )
    return SFTRow(leaf.state.messages, trained, leaf.state.tools, _worth(leaf, verified=verified(source.tree)), lineage)


def _trained(trajectory: Trajectory, whole: Sequence[bool], first: int = 0) -> tuple[bool, ...]:
    flags = [False] * len(trajectory.prompt)
    for index, step in enumerate(trajectory.steps):
        fit = index >= first and whole[index] and step.sampled and step.error is None and well_formed(step.action)
        flags += [fit, *(False for _ in step.observations)]
    return tuple(flags)


def _worth(leaf: Node, *, verified: bool) -> float | None:
    """The score of a leaf; its reward only where the search asked no verifier, for a verifier that failed has vouched for nothing."""
    if leaf.score is not None:
        return leaf.score.value
    return None if verified else leaf.state.steps[-1].reward


def verified(tree: SearchTree) -> bool:
    """Whether the search that made `tree` asked a verifier about its ends."""
    return bool(tree.config.get("verifier"))


def _passing(tree: SearchTree, min_score: float, min_grade: Grade) -> tuple[list[Node], str]:
    """The leaves that may leave, best first, and why there are none where there are none."""
    asked = verified(tree)
    leaves = [node for node in tree.finished() if node.step is not None and node.step.error is None]
    gates = (
        ("no branch was finished and scored", lambda node: _worth(node, verified=asked) is not None),
        (f"no branch scored {min_score:g} or more", lambda node: (_worth(node, verified=asked) or 0.0) >= min_score),
        ("every good branch is stale", lambda node: node.state.grade > Grade.STALE),
        (f"every good branch is graded below {min_grade.name.lower()}", lambda node: node.state.grade >= min_grade),
    )
    for reason, gate in gates:
        leaves = [node for node in leaves if gate(node)]
        if not leaves:
            return [], reason
    return sorted(leaves, key=lambda node: (-(_worth(node, verified=asked) or 0.0), -(node.value or 0.0), node.index)), ""


def _distinct(leaves: Iterable[Node]) -> Iterator[Node]:
    seen = set()
    for leaf in leaves:
        actions = tuple(step.action.signature for step in leaf.state.steps)
        if actions not in seen:
            seen.add(actions)
            yield leaf

"""SFT rows: whole trajectories that ended well, found by a search or logged (the control); and what every attempt at a task was worth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from counterplay.core.nouns import Grade, Outcome, Trace, Trajectory
from counterplay.finetune.rows import (
    Drop,
    Harvest,
    Lineage,
    SFTRow,
    SourcedTree,
    too_low,
    trainable_steps,
    trained_flags,
    users_of,
    verifiers_of,
)
from counterplay.search.tree import Node, SearchTree

UNSEEN = "no step was sampled from a prompt known whole"


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
        leaves, reason = passing(tree.tree, min_score, min_grade)
        taken = leaves[:per_tree]
        made = [leaf_row(tree, leaf, 0 if train_prefix else len(tree.tree.root.state)) for leaf in taken]
        rows += [row for row in made if any(row.trained)]
        drops += [Drop(UNSEEN, row.name) for row in made if not any(row.trained)]
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
        reason = no_success(trace, min_reward)
        if reason:
            drops.append(Drop(reason, trace.id))
            continue
        drops += [Drop("a sub-agent's context", f"{trace.id}/{sub.agent}") for sub in trace.sub_trajectories if sub.continues is None]
        for index, trajectory in contexts(trace):
            row = _logged_row(trace, trajectory, trainable_steps(trace, index))
            reason = too_low(trajectory.grade, min_grade) or ("" if any(row.trained) else UNSEEN)
            if reason:
                drops.append(Drop(reason, row.name))
            else:
                rows.append(row)
    return Harvest(tuple(rows), tuple(drops))


@dataclass(frozen=True)
class Success:
    """One success at a task: its rows (several where its context was compacted), the model calls in them, and its score.

    `key` is the state key of its end: a line that was logged and is in a tree as well has one.
    """

    rows: tuple[SFTRow, ...]
    calls: int
    score: float
    key: str

    @property
    def unit(self) -> str:
        return self.rows[0].lineage.unit

    @property
    def name(self) -> str:
        return self.rows[0].name


def successes(
    trees: Iterable[SourcedTree], traces: Iterable[Trace] = (), *, min_score: float = 1.0, min_grade: Grade = Grade.EXECUTED
) -> tuple[dict[str, list[Success]], list[Drop]]:
    """Every success of each task, in trees and logs together, each once; a log may also be the tree's. Logged ones come first.

    The keys are `Lineage.unit`s. A success whose source says no number has score 1.
    """
    found: dict[str, dict[str, Success]] = defaultdict(dict)
    drops: list[Drop] = []
    for trace in traces:
        harvest = logged_rows([trace], min_reward=min_score, min_grade=min_grade)
        drops += harvest.drops
        if harvest.rows:
            calls = sum(step.sampled for _, trajectory in contexts(trace) for step in trajectory.steps)
            reward = trace.outcome.reward
            one = Success(harvest.rows, calls, 1.0 if reward is None else reward, trace.trajectory.key)
            drops += _keep(found[one.unit], one)
    for tree in trees:
        leaves, reason = passing(tree.tree, min_score, min_grade)
        if not leaves:
            drops.append(Drop(reason, tree.name))
        for leaf in leaves:
            row = leaf_row(tree, leaf)
            if any(row.trained):
                calls = sum(step.sampled for step in leaf.state.steps)
                score = worth(leaf, verified=verified(tree.tree))
                drops += _keep(found[row.lineage.unit], Success((row,), calls, 1.0 if score is None else score, leaf.state.key))
            else:
                drops.append(Drop(UNSEEN, row.name))
    return {unit: list(kept.values()) for unit, kept in found.items() if kept}, drops


def _keep(kept: dict[str, Success], one: Success) -> list[Drop]:
    if one.key in kept:
        return [Drop("a duplicate", one.name)]
    kept[one.key] = one
    return []


def attempts(trees: Iterable[SourcedTree], traces: Iterable[Trace] = ()) -> dict[str, list[float]]:
    """What every finished attempt at a task came to, successes and failures alike, in [0, 1]; by `Lineage.unit`.

    A line that several trees hold, or a tree and the logs, is one attempt. Lines whose machinery failed, that nobody scored or whose
    outcome is unknown are none.
    """
    found: dict[str, list[float]] = defaultdict(list)
    seen: set[tuple[str, str]] = set()
    for trace in traces:
        value, unit = earned(trace.outcome), Lineage(trace.task, (trace.id,)).unit
        if value is not None:
            found[unit].append(value)
            seen.add((unit, trace.trajectory.key))
    for tree in trees:
        asked, unit = verified(tree.tree), tree.lineage.unit
        for leaf in tree.tree.finished():
            value = worth(leaf, verified=asked) if leaf.step is not None and leaf.step.error is None else None
            if value is not None and (unit, leaf.state.key) not in seen:
                found[unit].append(min(1.0, max(0.0, value)))
                seen.add((unit, leaf.state.key))
    return dict(found)


def earned(outcome: Outcome) -> float | None:
    """What a logged run came to, in [0, 1]: its reward, and 0 whatever the reward where it is said to have failed; None where unknown."""
    if outcome.reward is None:
        return None if outcome.success is None else float(outcome.success)
    return 0.0 if outcome.success is False else min(1.0, max(0.0, outcome.reward))


def no_success(trace: Trace, min_reward: float) -> str:
    """Why a trace is no success; empty where it is one."""
    outcome = trace.outcome
    if outcome.success is not False and (outcome.reward >= min_reward if outcome.reward is not None else outcome.success is True):
        return ""
    return "the outcome is unknown" if outcome.reward is None and outcome.success is None else "the logged run did not succeed"


def contexts(trace: Trace) -> list[tuple[int, Trajectory]]:
    """The main context and those that continue it after a compaction, with their indices."""
    continued = [(i, sub.trajectory) for i, sub in enumerate(trace.sub_trajectories, 1) if sub.continues is not None]
    return [(0, trace.trajectory), *continued]


def _logged_row(trace: Trace, trajectory: Trajectory, whole: Sequence[bool]) -> SFTRow:
    sessions = () if trace.session is None else (trace.session,)
    verifiers = tuple(sorted({f"{score.name}@" for score in trace.scores if score.name}))
    lineage = Lineage(
        trace.task,
        (trace.id,),
        sessions,
        nodes=(trajectory.key,),
        verifiers=verifiers,
        grade=trajectory.grade,
        logged=True,
        agent=trace.agent,
        users=users_of(trace),
    )
    return SFTRow(trajectory.messages, trained_flags(trajectory, whole), trajectory.tools, trace.outcome.reward, lineage)


def leaf_row(source: SourcedTree, leaf: Node, first: int = 0) -> SFTRow:
    """The line to `leaf` as a row that trains on its sampled steps from step `first` on; perhaps on none."""
    lineage = replace(
        source.lineage,
        nodes=(leaf.state.key,),
        verifiers=tuple(sorted(verifiers_of(leaf))),
        grade=leaf.state.grade,
        logged=all(node.logged for node in leaf.path()[1:]),
    )
    trained = trained_flags(leaf.state, source.trainable(leaf.state), first)
    return SFTRow(leaf.state.messages, trained, leaf.state.tools, worth(leaf, verified=verified(source.tree)), lineage)


def only_steps(row: SFTRow, trajectory: Trajectory, steps: Collection[int]) -> SFTRow:
    """The row of `trajectory`, trained on none but those of its trained steps that are in `steps`."""
    at = len(trajectory.prompt)
    chosen = set()
    for index, step in enumerate(trajectory.steps):
        if index in steps:
            chosen.add(at)
        at += len(step.messages)
    return replace(row, trained=tuple(flag and i in chosen for i, flag in enumerate(row.trained)))


def worth(leaf: Node, *, verified: bool) -> float | None:
    """The score of a leaf; its reward only where the search asked no verifier, for a verifier that failed has vouched for nothing."""
    if leaf.score is not None:
        return leaf.score.value
    return None if verified else leaf.state.steps[-1].reward


def verified(tree: SearchTree) -> bool:
    """Whether the search that made `tree` asked a verifier about its ends."""
    return bool(tree.config.get("verifier"))


def passing(tree: SearchTree, min_score: float, min_grade: Grade) -> tuple[list[Node], str]:
    """The leaves that may leave and differ in what they do, best first, and why there are none where there are none."""
    asked = verified(tree)
    leaves = [node for node in tree.finished() if node.step is not None and node.step.error is None]
    gates = (
        ("no branch was finished and scored", lambda node: worth(node, verified=asked) is not None),
        (f"no branch scored {min_score:g} or more", lambda node: (worth(node, verified=asked) or 0.0) >= min_score),
        ("every good branch is stale", lambda node: node.state.grade > Grade.STALE),
        (f"every good branch is graded below {min_grade.name.lower()}", lambda node: node.state.grade >= min_grade),
    )
    for reason, gate in gates:
        leaves = [node for node in leaves if gate(node)]
        if not leaves:
            return [], reason
    return list(_distinct(sorted(leaves, key=lambda node: (-(worth(node, verified=asked) or 0.0), -(node.value or 0.0), node.index)))), ""


def _distinct(leaves: Iterable[Node]) -> Iterator[Node]:
    seen = set()
    for leaf in leaves:
        actions = tuple(step.action.signature for step in leaf.state.steps)
        if actions not in seen:
            seen.add(actions)
            yield leaf

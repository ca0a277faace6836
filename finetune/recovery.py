"""SFT rows in which a wrong step, what it led to, its correction and the good end are one trajectory.

Gandhi et al. 2024, "Stream of Search" (arXiv:2404.03683): a model that has seen mistakes made good learns to make them good. Only
lines that a tree or a log really holds are taken; no text is put between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

from counterplay.core.nouns import Grade, Step, Trace, Trajectory
from counterplay.core.tool_errors import is_error
from counterplay.finetune.evidence import ActionEvidence
from counterplay.finetune.improved import surely_higher
from counterplay.finetune.rows import Drop, Harvest, SFTRow, SourcedTree, too_low
from counterplay.finetune.trajectories import contexts, leaf_row, logged_rows, only_steps, passing
from counterplay.search.tree import Node

V = TypeVar("V")

NO_RECOVERY = "no step of a success went wrong and was made good"


def recovery_rows(
    trees: Iterable[SourcedTree] = (),
    traces: Iterable[Trace] = (),
    *,
    tau: float = 0.9,
    min_drop: float = 0.2,
    min_score: float = 1.0,
    min_grade: Grade = Grade.EXECUTED,
    per_tree: int = 1,
    train_wrong: bool = False,
) -> Harvest[SFTRow]:
    """Successes that went wrong on the way: everything is in the row, and all sampled steps but the wrong ones are trained on.

    A step is wrong where, in a tree, the value surely falls with it or another action of its state is surely better (P >= `tau` under
    Beta(1 + W, 1 + N - W) of played lines, and higher W / N); where the score of a process verifier falls by `min_drop`, in a tree or a
    log; or where a tool answered with an error and a later, other call of that tool did not. At least one step after it must be trained
    on: the correction. `train_wrong` trains on wrong steps as well, as the paper does. The `per_tree` best such ends of a tree are taken.
    """
    rows: list[SFTRow] = []
    drops: list[Drop] = []
    for source in trees:
        leaves, reason = passing(source.tree, min_score, min_grade)
        known = ActionEvidence(source)
        made = (
            _row(leaf_row(source, leaf), leaf.state, wrong_steps(known, leaf, tau, min_drop, min_grade), train_wrong) for leaf in leaves
        )
        taken = [row for row in made if row is not None][:per_tree]
        rows += taken
        if not taken:
            drops.append(Drop(reason or NO_RECOVERY, source.name))
    for trace in traces:
        harvest = logged_rows([trace], min_reward=min_score, min_grade=min_grade)
        drops += harvest.drops
        by_key = {row.lineage.nodes[0]: row for row in harvest.rows}
        for index, trajectory in contexts(trace):
            if trajectory.key in by_key:
                row = _row(by_key[trajectory.key], trajectory, logged_wrong_steps(trace, index, trajectory, min_drop), train_wrong)
                if row is None:
                    drops.append(Drop(NO_RECOVERY, by_key[trajectory.key].name))
                else:
                    rows.append(row)
    return Harvest(tuple(rows), tuple(drops))


def _row(row: SFTRow, trajectory: Trajectory, wrong: set[int], train_wrong: bool) -> SFTRow | None:
    """The row with its wrong steps masked; None where there are none, or nothing is trained on after the first of them."""
    if not wrong or not any(only_steps(row, trajectory, set(range(min(wrong) + 1, len(trajectory))) - wrong).trained):
        return None
    return row if train_wrong else only_steps(row, trajectory, set(range(len(trajectory))) - wrong)


def wrong_steps(known: ActionEvidence, leaf: Node, tau: float, min_drop: float, min_grade: Grade = Grade.EXECUTED) -> set[int]:
    """The steps of the line to `leaf` that went wrong, by their index in the trajectory. The line is taken to end well."""
    path = leaf.path()
    first = len(path[0].state)

    def surely(up: tuple[int, float], down: tuple[int, float]) -> bool:
        return surely_higher(up, down, tau)

    counts = [known.lines[node.index] if known.lines[node.index][0] else None for node in path]
    scores = [None if node.score is None else node.score.value for node in path]
    found = {first + step for step in falls(counts, surely)} | {first + step for step in falls(scores, _lower_by(min_drop))}
    for step, (parent, node) in enumerate(pairwise(path), first):
        actions = [action for action in known.actions(parent) if not too_low(action.grade, min_grade)]
        own = [action for action in actions if any(node is one for one in action.nodes)]
        if any(surely((other.visits, other.value_sum), (one.visits, one.value_sum)) for one in own for other in actions):
            found.add(step)
    return found | failed_calls(leaf.state)


def logged_wrong_steps(trace: Trace, index: int, trajectory: Trajectory, min_drop: float) -> set[int]:
    """The steps of a logged context that went wrong: where what somebody said of its steps falls, and failed calls."""
    found = failed_calls(trajectory)
    by_name: dict[str, list[float | None]] = {}
    for score in trace.scores:
        if score.trajectory == index and score.step is not None and score.scaled is not None and 0 <= score.step < len(trajectory):
            by_name.setdefault(score.name, [None] * (len(trajectory) + 1))[score.step + 1] = score.scaled
    for values in by_name.values():
        found |= falls(values, _lower_by(min_drop))
    return found


def _lower_by(least: float) -> Callable[[float, float], bool]:
    return lambda up, down: up - down >= least - 1e-12


def falls(values: Sequence[V | None], surer: Callable[[V, V], bool]) -> set[int]:
    """The steps with which a value falls: `values[t]` is of the state before step t, None where it is unknown.

    `surer(a, b)` says whether a is surely more than b. After a fall, further ones are against the fallen value, until it is back where it
    was. Where states between two known ones have no value, all steps between them are meant.
    """
    found: set[int] = set()
    good: V | None = None
    fallen: V | None = None
    last = 0
    for at, value in enumerate(values):
        if value is None:
            continue
        before = good if fallen is None else fallen
        if before is not None and surer(before, value):
            found |= set(range(last, at))
            fallen = value
        elif fallen is None or (good is not None and surer(value, fallen) and not surer(good, value)):
            good, fallen = value, None
        last = at
    return found


def failed_calls(trajectory: Trajectory) -> set[int]:
    """Steps with a call that a tool answered with an error, where a later call of the tool did better.

    The same call again in the very next step is a repeated attempt at a passing failure, and the first was not wrong.
    """
    found = set()
    better: dict[str, tuple[int, str]] = {}  # of each tool, the first later call that did better
    for at in range(len(trajectory) - 1, -1, -1):
        calls = _answers(trajectory.steps[at])
        if any(failed and better.get(tool, (at + 1, signature)) != (at + 1, signature) for tool, signature, failed in calls):
            found.add(at)
        better |= {tool: (at, signature) for tool, signature, failed in reversed(calls) if not failed}
    return found


def _answers(step: Step) -> list[tuple[str, str, bool]]:
    """Of every call that was answered: its tool, its signature, and whether the answer is an error."""
    results = {message.tool_call_id: message for message in step.observations if message.role == "tool"}
    return [(call.name, call.signature, is_error(results[call.id])) for call in step.action.tool_calls if call.id in results]

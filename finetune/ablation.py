"""Calls that were not needed: leave one out of a line that succeeded, execute the rest, and see whether it still succeeds.

After Qian et al. 2025, "SMART: Self-Aware Agent for Tool Overuse Mitigation" (arXiv:2502.11435). Needs an environment and a verifier, no
model. What a verifier does not look at, it does not miss: leave a mail out, and only a verifier that wants the mail will say so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from counterplay.core.budget import Budget
from counterplay.core.errors import CounterplayError, StoreError, UserError
from counterplay.core.journal import JournaledEnvironment, MemoryJournal
from counterplay.core.nouns import Grade, Message, ToolCall, Trace, Trajectory
from counterplay.core.protocols import Environment, Verifier
from counterplay.finetune.labels.steps import SUCCESS, Evidence, StepLabel, label
from counterplay.finetune.replayed import play_actions, score_ends
from counterplay.finetune.rows import DPORow, Drop, Harvest, SourcedTree, too_low, verifiers_of, well_formed
from counterplay.finetune.trajectories import no_success
from counterplay.search.engine import Engine
from counterplay.search.logged import logged_path
from counterplay.search.tree import Node, SearchTree

_NOT_AGAIN = "the line does not succeed when it is played again"
_FACT = re.compile(r"[^\W_]+")


async def ablated(
    trajectory: Trajectory,
    environment: Environment,
    verifier: Verifier,
    *,
    reads_only: bool = False,
    concurrency: int = 16,
) -> SearchTree:
    """The line as a tree, with a branch for every call that can be left out: the actions after it, executed, and the end scored.

    Where an action made several calls, one is taken out of it; else the whole step goes. The last action stays, and so do steps that a
    user answered. `reads_only` leaves out no call of a tool that may write or reach outside (of an unknown effect, that is). The
    whole line is played again first. Raises UserError where it has not ended, or does not succeed again.
    """
    if not trajectory.finished:
        raise UserError("got a line that has not ended", "a whole one that succeeded")
    line = logged_path(trajectory, "ablation", {"reads_only": reads_only})
    engine = Engine(None, JournaledEnvironment(environment, MemoryJournal()), verifier, Budget(), concurrency=concurrency)
    actions = [step.action for step in trajectory.steps]
    again = SearchTree.start(trajectory.prefix(0))
    (control,) = await play_actions(engine, again, [(again.root, actions)])
    await engine.score([line.end, *([control] if control.finished else [])])
    if control.score is None or control.score.value < SUCCESS:
        raise UserError(_NOT_AGAIN, "one whose actions alone repeat its success")
    line.end.score = line.end.score or control.score
    line.end.backup(line.end.score.value)
    branches = [(line.nodes[step], [*changed, *actions[step + 1 :]]) for step, changed in _left_out(trajectory, reads_only)]
    ends = await play_actions(engine, line.tree, branches)
    await score_ends(engine, ends)
    return engine.finish(line.tree, f"{len(ends)} calls were left out")


def _left_out(trajectory: Trajectory, reads_only: bool) -> Iterator[tuple[int, list[Message]]]:
    """For every call that can be left out: its step, and what remains of its action, if anything."""
    for index, step in enumerate(trajectory.steps[:-1]):
        calls = step.action.tool_calls
        if not calls or any(message.role != "tool" for message in step.observations):
            continue
        for at, call in enumerate(calls):
            spec = trajectory.tool(call.name)
            if not reads_only or (spec is not None and spec.effect.kind in ("pure", "read")):
                yield index, [_without(step.action, at)] if len(calls) > 1 else []


def _without(action: Message, at: int) -> Message:
    fields = action.to_openai()
    del fields["tool_calls"][at]
    return Message.from_openai(fields)


async def ablate(
    traces: Iterable[Trace],
    environment_of: Callable[[Trace], Environment],
    verifier: Verifier,
    *,
    min_reward: float = 1.0,
    reads_only: bool = False,
    concurrency: int = 16,
) -> tuple[list[SourcedTree], list[Drop]]:
    """`ablated` for every logged success, one after the other; the traces without a tree by name."""
    trees: list[SourcedTree] = []
    drops: list[Drop] = []
    for trace in traces:
        reason = no_success(trace, min_reward) or ("" if trace.trajectory.finished else "the logged run has not ended")
        if not reason:
            try:
                tree = await ablated(trace.trajectory, environment_of(trace), verifier, reads_only=reads_only, concurrency=concurrency)
                trees.append(SourcedTree(tree, f"ablation-{trace.id}", trace.task, 0, (trace,)))
            except CounterplayError as error:
                if isinstance(error, StoreError) or (isinstance(error, UserError) and error.got != _NOT_AGAIN):
                    raise
                reason = error.got if isinstance(error, UserError) else "the environment can't play the line again"
        if reason:
            drops.append(Drop(reason, trace.id))
    return trees, drops


@dataclass(frozen=True)
class Ablation:
    """One call that was left out in the state `parent`: `logged` made it, `branch` went on without it and came to `end`.

    `needed` says what is wrong without it, "" where the line still succeeds. None means that this can't be said: the machinery failed,
    or nobody scored the end.
    """

    parent: Node
    logged: Node
    branch: Node
    end: Node
    call: ToolCall
    alone: bool
    needed: str | None


def ablations(source: SourcedTree) -> list[Ablation]:
    """Every call that a tree of `ablated` left out, in the order of the line; none in trees of other searches."""
    found: list[Ablation] = []
    for parent in source.tree.nodes if source.tree.algorithm == "ablation" else ():
        logged = next((child for child in parent.children if child.logged), None)
        if logged is not None and logged.step is not None and (parent.logged or parent.parent is None):
            action = logged.step.action
            branches = [child for child in parent.children if not child.logged]
            alone = len(action.tool_calls) == 1
            for call, branch in zip(_calls_of(action, branches), branches, strict=True):
                end = branch
                while end.children:
                    end = end.children[0]
                lost = [message for message in logged.step.observations if alone or message.tool_call_id == call.id]
                found.append(Ablation(parent, logged, branch, end, call, alone, _needed(logged, branch, end, lost)))
    return found


def _calls_of(action: Message, branches: Sequence[Node]) -> list[ToolCall]:
    """The call that each branch left out. Of several calls, the one whose absence makes the branch's first action."""
    if len(action.tool_calls) == 1:
        return [action.tool_calls[0] for _ in branches]
    shorter = {_without(action, at).wire: call for at, call in enumerate(action.tool_calls)}
    return [shorter[branch.state.steps[-1].action.wire] for branch in branches]


def _needed(logged: Node, branch: Node, end: Node, lost: Sequence[Message]) -> str | None:
    last = logged
    while any(child.logged for child in last.children):
        last = next(child for child in last.children if child.logged)
    if end.step is None or end.step.error is not None:
        return None
    if not end.finished:
        return "the line does not end without the call"
    if end.score is None:
        return None
    if end.score.value < max(SUCCESS, 0.0 if last.score is None else last.score.value):
        return "the line fails without the call"
    return "a later action uses what the call found" if _uses(logged, branch, lost) else ""


def _uses(logged: Node, branch: Node, lost: Sequence[Message]) -> bool:
    """Whether an action of the branch says something that only the lost observations told. What the call itself said was known before."""
    before, action = logged.state.prefix(len(logged.state) - 1), logged.state.steps[-1].action
    told = _facts(*(message.wire for message in before.messages), *(tool.wire for tool in before.tools), action.wire)
    news = _facts(*(message.content_text for message in lost))
    node: Node | None = branch
    while node is not None and node.step is not None:
        if (news - told) & _facts(*_said(node.step.action)):
            return True
        told |= _facts(*(message.wire for message in node.step.messages))
        node = node.children[0] if node.children else None
    return False


def _said(action: Message) -> Iterator[str]:
    """What an action says in its own words: text, reasoning, and the values of its arguments."""
    yield action.content_text
    yield action.reasoning or ""
    values: list[object] = [call.arguments if call.args is None else call.args for call in action.tool_calls]
    while values:
        value = values.pop()
        if isinstance(value, dict | list):
            values += value.values() if isinstance(value, dict) else value
        else:
            yield str(value)


def _facts(*texts: str) -> set[str]:
    """Words of four letters or more, and everything with a digit."""
    words = (word.casefold() for text in texts for word in _FACT.findall(text))
    return {word for word in words if len(word) > 3 or any(char.isdigit() for char in word)}


def ablation_rows(trees: Iterable[SourcedTree], *, tau: float = 0.5, min_grade: Grade = Grade.EXECUTED) -> Harvest[DPORow]:
    """Pairs at calls that were not needed: the next action of the line is chosen, the call is rejected.

    `chosen` was sampled by the model, one call later. `probability` is how likely it is that leaving a call of this tool out does no
    harm, (1 + k) / (2 + n) over all `n` that were left out of these trees and the `k` that were not missed; pairs below `tau` are left
    out, so that a tool which other tasks need is not unlearnt. `margin` is the one call saved. A call counts as needed where a later
    action holds a word or number that only its result had told. Of an action with several calls no pair is made, for nobody wrote it
    with one call less.
    """
    found = [(source, one) for source in trees for one in ablations(source)]
    judged = [one for _, one in found if one.needed is not None]
    tried, spared = Counter(one.call.name for one in judged), Counter(one.call.name for one in judged if not one.needed)
    rows: list[DPORow] = []
    drops: list[Drop] = []
    for source, one in found:
        sure = (1 + spared[one.call.name]) / (2 + tried[one.call.name])
        row = _pair(source, one, sure)
        reason = _refusal(source, one, row, min_grade) or ("" if sure >= tau else "other lines need calls of this tool")
        if reason:
            drops.append(Drop(reason, row.name))
        else:
            rows.append(row)
    return Harvest(tuple(rows), tuple(drops))


def _pair(source: SourcedTree, one: Ablation, sure: float) -> DPORow:
    lineage = replace(
        source.lineage,
        fork_step=len(one.parent.state),
        nodes=(one.parent.state.key, one.branch.state.key, one.logged.state.key),
        verifiers=tuple(sorted(verifiers_of(one.end))),
        grade=one.end.state.grade,
    )
    chosen, rejected = one.branch.state.steps[-1].action, one.logged.state.steps[-1].action
    return DPORow(
        prompt=one.parent.state.messages,
        chosen=(chosen,),
        rejected=(rejected,),
        tools=one.parent.state.tools,
        probability=sure,
        visits=(one.branch.visits, one.logged.visits),
        value_sums=(one.branch.value_sum, one.logged.value_sum),
        margin=1.0,
        lineage=lineage,
    )


def _refusal(source: SourcedTree, one: Ablation, row: DPORow, min_grade: Grade) -> str:
    if one.needed is None:
        return "what comes without the call is not known"
    following = next((child.step for child in one.logged.children if child.logged), None)
    reasons = (
        (one.needed, bool(one.needed)),
        ("one of several calls of an action", not one.alone),
        ("the next action is the same call", row.chosen[0].signature == row.rejected[0].signature),
        ("an action was not sampled", not all(step is not None and step.sampled for step in (one.logged.step, following))),
        ("the chosen action's arguments are not a JSON object", not well_formed(row.chosen[0])),
        ("the prompt is not known whole", not source.whole(one.parent.state)[-1]),
    )
    return too_low(row.lineage.grade, min_grade) or next((reason for reason, holds in reasons if holds), "")


def ablation_labels(source: SourcedTree) -> list[StepLabel]:
    """For every step whose calls were left out, the share of them that was needed: 0 where the line succeeds as well without."""
    steps: dict[int, list[Ablation]] = {}
    for one in ablations(source):
        if one.needed is not None:
            steps.setdefault(one.logged.index, []).append(one)
    return [
        label(
            source,
            ones[0].logged,
            sum(bool(one.needed) for one in ones) / len(ones),
            "ablation",
            known=Evidence(len(ones), 0.0, None),
        )
        for ones in steps.values()
    ]

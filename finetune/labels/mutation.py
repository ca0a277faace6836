"""Labelled negatives without a model: change one argument of a call in a line that succeeded, execute it, and see.

Ye et al. 2025, "Process-Supervised Reinforcement Learning for Code Generation" (PRLCoder): mutate a correct step, label it by execution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from counterplay.core.budget import Budget
from counterplay.core.canonical import dumps
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, ToolCall, Trajectory
from counterplay.core.protocols import Environment, Verifier
from counterplay.finetune.labels.monte_carlo import monte_carlo
from counterplay.finetune.labels.steps import StepLabel
from counterplay.finetune.replayed import play_actions, score_ends
from counterplay.finetune.rows import SourcedTree
from counterplay.search.engine import Engine
from counterplay.search.logged import logged_path
from counterplay.search.tree import Node, SearchTree


@dataclass(frozen=True, slots=True)
class Mutation:
    """An action with one argument changed: `name` of call number `call`, `before` and `after` as JSON values."""

    action: Message
    call: int
    name: str
    before: Any
    after: Any


def mutations(trajectory: Trajectory, step: int, rng: Random) -> list[Mutation]:
    """Changed copies of the action at `step`, one for each argument that can be changed, in the order of the arguments.

    A value is changed into another of its kind: one that its schema lists (`enum`), else one seen in the same argument elsewhere in the
    trajectory, else a number nearby or the other truth value. Text that was never seen otherwise, lists and objects stay.
    """
    action = trajectory.steps[step].action
    made = []
    for at, call in enumerate(action.tool_calls):
        for name, before in (call.args or {}).items():
            others = [value for value in _alternatives(trajectory, call, name, before) if value != before]
            if others:
                made.append(Mutation(_changed(action, at, name, after := rng.choice(others)), at, name, before, after))
    return made


def _alternatives(trajectory: Trajectory, call: ToolCall, name: str, before: Any) -> list[Any]:
    spec = trajectory.tool(call.name)
    listed = (spec.parameters.get("properties") or {}).get(name, {}).get("enum") if spec is not None else None
    if listed:
        return list(listed)
    seen = list(
        dict.fromkeys(value for value in _seen(trajectory, name) if type(value) is type(before) and not isinstance(value, list | dict))
    )
    if len(seen) > 1:
        return seen
    if isinstance(before, bool):
        return [not before]
    return [before + 1, before - 1, 10 * before] if isinstance(before, int | float) else []


def _seen(trajectory: Trajectory, name: str) -> Iterator[Any]:
    for step in trajectory.steps:
        for call in step.action.tool_calls:
            args = call.args or {}
            if name in args:
                yield args[name]


def _changed(action: Message, at: int, name: str, value: Any) -> Message:
    fields = action.to_openai()
    raw = fields["tool_calls"][at]
    function = raw.get("function") or raw
    arguments = {**(action.tool_calls[at].args or {}), name: value}
    function["arguments"] = dumps(arguments) if isinstance(function.get("arguments"), str) else arguments
    return Message.from_openai(fields)


async def mutated(
    trajectory: Trajectory, environment: Environment, verifier: Verifier, *, per_line: int = 8, concurrency: int = 16, seed: int = 0
) -> SearchTree:
    """The line as a tree, with branches that change one argument of one call and then do what the line did.

    `per_line` changed steps are drawn. Each branch is executed and its end scored; where what a changed call gave was of no use the rest
    fails, and where it did not matter the end is as good. Raises UserError where the line itself did not succeed.
    """
    if not trajectory.finished or (trajectory.steps[-1].reward or 0.0) < 0.5:
        raise UserError("got a line that did not succeed", "a correct one, whose steps can be made wrong")
    line = logged_path(trajectory, "mutation", {"per_line": per_line, "seed": seed})
    rng = Random(f"{seed}/{trajectory.key}")
    found = [(step, one.action) for step in range(len(trajectory)) for one in mutations(trajectory, step, rng)]
    chosen = sorted(rng.sample(found, min(per_line, len(found))), key=lambda pair: pair[0])
    actions = [step.action for step in trajectory.steps]
    engine = Engine(None, environment, verifier, Budget(), concurrency=concurrency)
    ends = await play_actions(engine, line.tree, [(line.nodes[step], [action, *actions[step + 1 :]]) for step, action in chosen])
    await score_ends(engine, [line.end, *ends])
    return engine.finish(line.tree, f"{len(ends)} changed steps were executed")


def mutation_labels(source: SourcedTree) -> list[StepLabel]:
    """1 for the steps of the line, and for the changed step of every branch whether the rest of the line still succeeded.

    The steps after a changed one are not labelled: they were right where they were written.
    """
    found = {one.key: one for one in monte_carlo(source, hard=True)}
    wanted = [node for node in source.tree.nodes[1:] if node.logged or (node.parent is not None and _on_line(node.parent))]
    return [replace(found[node.state.key], kind="mutation") for node in wanted if node.state.key in found]


def _on_line(node: Node) -> bool:
    return node.logged or node.parent is None

"""Log-only counterfactuals: the runs of one task are merged where they did the same, and values come from their outcomes.

Zero model calls and zero tool calls. First-visit Monte Carlo over merged states (Sutton & Barto, section 5.1), as RTMC and
AgentPRM-MC do for agents: Q(s, a) is the mean outcome of all runs that did a in s, with the posterior Beta(1 + W, 1 + N - W).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from counterplay.core.canonical import canonical, content_key
from counterplay.core.nouns import Message, Score, Step, Trajectory
from counterplay.search.logged import logged_path, logged_reward
from counterplay.search.tree import Node, SearchTree


@dataclass(slots=True)
class ActionClass:
    """What the runs that took equal actions in equal states came to: `visits` N and `value_sum` W of those with a logged reward.

    `runs` counts all of them; `example` is the action in the words of the first run that a model took it in.
    """

    example: Message | None = None
    runs: int = 0
    visits: int = 0
    value_sum: float = 0.0


@dataclass(slots=True)
class StateClass:
    runs: int = 0
    visits: int = 0
    value_sum: float = 0.0
    actions: dict[str, ActionClass] = field(default_factory=dict)


Classes: TypeAlias = "Mapping[str, StateClass]"


def stitch(traces: Sequence[Trajectory]) -> list[SearchTree]:
    """Merge runs of one task; one tree for each run, in their order. Runs without steps give no tree.

    A run's own path is logged nodes, with N and W of their class. Where other runs did something else in an equal state, that
    action is added as a child that was not executed (a step without observations), with N and W of its class: all siblings
    share one exact prompt. The caller groups runs by task. Raises UserError on a logged reward outside [0, 1].
    """
    keyed = [(run, state_keys(run)) for run in traces if run.steps]
    classes = _merged(keyed)
    return [_tree(run, keys, classes) for run, keys in keyed]


def merge(traces: Sequence[Trajectory]) -> Classes:
    """Count every run in each class it visits; it visits none twice, for a class knows all that was done before."""
    return _merged([(run, state_keys(run)) for run in traces])


def _merged(keyed: Sequence[tuple[Trajectory, list[str]]]) -> Classes:
    classes: dict[str, StateClass] = {}
    for run, keys in keyed:
        reward = logged_reward(run)
        for key, step in zip(keys, run.steps, strict=False):
            state = classes.setdefault(key, StateClass())
            action = state.actions.setdefault(action_signature(step.action), ActionClass())
            if action.example is None and step.sampled:
                action.example = step.action
            _count(state, reward)
            _count(action, reward)
    return classes


def action_signature(action: Message) -> str:
    """What an action does apart from prose, ids and key order: its tool calls, or `say` where it only speaks."""
    return action.signature if action.tool_calls else "say"


def state_keys(run: Trajectory) -> list[str]:
    """The class of each state along a run, before every step and at its end: tool calls and tool results so far, and that (not what)
    was said in between. Tool-call ids, white space and key order of JSON do not enter.
    """
    keys = [content_key("stitch")]
    for step in run.steps:
        keys.append(content_key(keys[-1], action_signature(step.action), *(_observed(message) for message in step.observations)))
    return keys


def _observed(message: Message) -> str:
    if message.role != "tool":
        return message.role
    text = " ".join(message.content_text.split())
    try:
        return canonical(json.loads(text))
    except (ValueError, RecursionError):
        return text


def _count(counted: StateClass | ActionClass, reward: float | None) -> None:
    counted.runs += 1
    if reward is not None:
        counted.visits += 1
        counted.value_sum += reward


def _tree(run: Trajectory, keys: Sequence[str], classes: Classes) -> SearchTree:
    path = logged_path(run, "stitch")
    tree, reward = path.tree, logged_reward(run)
    tree.root.visits, tree.root.value_sum = classes[keys[0]].visits, classes[keys[0]].value_sum
    for key, node, child in zip(keys, path.nodes, path.nodes[1:], strict=False):
        state = classes[key]
        taken = action_signature(child.state.steps[-1].action)
        for signature, action in state.actions.items():
            if signature == taken:
                _fill(child, action, state.runs)
            elif action.example is not None:
                _fill(tree.add(node, Step(action.example)), action, state.runs)
    if reward is not None:
        path.end.score = Score(reward, "logged outcome", "logged_reward", "1")
    tree.stop("every run merged")
    return tree


def _fill(node: Node, action: ActionClass, runs: int) -> None:
    node.draws, node.visits, node.value_sum, node.prior = action.runs, action.visits, action.value_sum, action.runs / runs

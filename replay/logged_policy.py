"""A policy out of logs: it proposes what other runs of the task did in the same situation, at no cost.

Two situations are the same where tools and prompt are equal and the tool calls and their results are, whatever ids they
carry. Runs that stood in exactly the asked state are preferred to those that only stood in the same situation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from counterplay.core.canonical import chain_key, content_key
from counterplay.core.nouns import Message, Proposal, State, Step, Trajectory


def situation_key(state: State) -> str:
    """A key of tools, prompt, actions and observations, without tool-call ids, argument order or surrounding white space."""
    key = _root(state)
    for step in state.steps:
        key = chain_key(key, *_signature(step))
    return key


class LoggedPolicy:
    """Proposes the distinct actions that `trajectories` took in a state, most frequent first; `prior` is the share of runs that took it.

    Empty where no run was there. An action put in the agent's mouth (`sampled` False) is not proposed.
    """

    def __init__(self, trajectories: Iterable[Trajectory]) -> None:
        self._exact: defaultdict[str, list[Message]] = defaultdict(list)
        self._alike: defaultdict[str, list[Message]] = defaultdict(list)
        tips = [self._learn(trajectory) for trajectory in trajectories]
        self.fingerprint = f"logged:{content_key(*sorted(tips))}"

    async def propose(self, state: State, n: int) -> Sequence[Proposal]:
        found = self._exact.get(state.key) or self._alike.get(situation_key(state)) or ()
        counts: dict[str, int] = {}
        first: dict[str, Message] = {}
        for action in found:
            counts[action.signature] = counts.get(action.signature, 0) + 1
            first.setdefault(action.signature, action)
        ranked = sorted(counts, key=lambda signature: -counts[signature])[:n]
        return [Proposal(first[signature], counts[signature] / len(found), model="logged") for signature in ranked]

    def _learn(self, trajectory: Trajectory) -> str:
        exact, alike = trajectory.prefix(0).key, _root(trajectory)
        for step in trajectory.steps:
            if step.sampled:
                self._exact[exact].append(step.action)
                self._alike[alike].append(step.action)
            exact = chain_key(exact, *(message.wire for message in step.messages))
            alike = chain_key(alike, *_signature(step))
        return exact


def _root(state: State) -> str:
    return chain_key(state.root_key, *(_said(message) for message in state.prompt))


def _said(message: Message) -> str:
    return f"{message.role}\n{message.signature}"


def _signature(step: Step) -> list[str]:
    """The action, then the observations with the place of the call they answer instead of its id."""
    places: Mapping[str, int] = {call.id: at for at, call in enumerate(step.action.tool_calls)}
    return [
        _said(step.action),
        *(f"{_said(message)}\n{places.get(message.tool_call_id or '', message.name or '')}" for message in step.observations),
    ]

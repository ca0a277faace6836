"""What the tools of a branch answer: recorded results where they still hold, else a given environment, else the tools that are named.

Nothing else is ever executed. What is decided here is decided for one action as a whole, before any of its tools is reached.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from counterplay.core.canonical import canonical, content_key
from counterplay.core.effects import Effect
from counterplay.core.nouns import Grade, Message, State, Step, ToolCall, Trajectory
from counterplay.core.protocols import Environment, fingerprint_of
from counterplay.replay.recorded import RecordedEnvironment, call_answers, with_call_id

if TYPE_CHECKING:
    from langgraph.checkpoint.base import CheckpointTuple


@dataclass(frozen=True)
class Prepared:
    """The answers to an action's calls by call id, with their grades. Calls that are not in it are to be executed."""

    answers: Mapping[str, tuple[Message, Grade]] = field(default_factory=dict)
    execute: frozenset[str] = frozenset()


class ToolAnswers:
    """Answers for the tools of a graph.

    A call is answered from the `recorded` trajectories by the rule of RecordedEnvironment under `effects`, failing that by
    `environment`, failing that by the tool itself if `execute_tools` names it. `bound_to_state` are the tools whose results depend
    on more than their arguments, or do more than answer: their recorded results hold after an identical prefix alone.
    """

    def __init__(
        self,
        recorded: Iterable[Trajectory] = (),
        *,
        effects: Mapping[str, Effect] | None = None,
        environment: Environment | None = None,
        execute_tools: Iterable[str] = (),
        bound_to_state: Mapping[str, str] | None = None,
    ) -> None:
        self.effects, self.environment, self.execute_tools = dict(effects or {}), environment, frozenset(execute_tools)
        self.bound_to_state = dict(bound_to_state or {})
        self._recorded_in = tuple(recorded)

    @cached_property
    def recorded(self) -> RecordedEnvironment:
        """The recordings by what was called, learned when a tool is first asked for."""
        return RecordedEnvironment(self._recorded_in, effects=self.effects)

    @cached_property
    def fingerprint(self) -> str:
        """Names the recordings, the effects, the environment behind them and the tools that may be executed."""
        behind = fingerprint_of(self.environment) if self.environment is not None else ""
        return content_key(self.recorded.fingerprint, behind, canonical(sorted(self.execute_tools)), canonical(self.bound_to_state))

    async def logged(self, state: State, action: Message) -> Step | None:
        """What followed this very action after this very prefix; None where no recording says so."""
        step = await self.recorded.step(state, action)
        is_exact = step.error is None and bool(step.grades) and step.grade is Grade.EXACT
        return step if is_exact else None

    async def reply(self, state: State, action: Message) -> Step | None:
        """What the user says to a text: as logged, else by the environment; None where nobody says anything."""
        step = await self.logged(state, action)
        if step is None and self.environment is not None:
            step = await self.environment.step(state, action)
        return step if step is not None and step.error is None and step.observations else None

    async def prepare(self, state: State, action: Message, pending: Sequence[ToolCall], harmless: Collection[str] = ()) -> Prepared | str:
        """The answers to the `pending` calls of an action, or the reason why there are none; nothing was executed then.

        Calls of `harmless` names are left to the graph, which executes nothing for them.
        """
        if len({call.id for call in pending}) < len(pending):
            return "two of the action's calls have one id, so that their answers can't be told apart"
        whole = action if len(pending) == len(action.tool_calls) else Message.assistant(tool_calls=pending)
        found = self._answers(await self.recorded.step(state, whole), whole)
        if found is not None and all(self._holds(call, found[call.id][1]) for call in pending):
            return Prepared(found)
        refusal = ""
        if self.environment is not None:
            step = await self.environment.step(state, whole)
            found = self._answers(step, whole)
            if found is not None:
                return Prepared(found)
            refusal = step.error or "the environment did not answer every call"
        return await self._one_by_one(state, pending, refusal, harmless)

    async def _one_by_one(self, state: State, pending: Sequence[ToolCall], refusal: str, harmless: Collection[str]) -> Prepared | str:
        answers: dict[str, tuple[Message, Grade]] = {}
        execute = set()
        for i, call in enumerate(pending):
            found = await self._recorded(state, pending[:i], call)
            if isinstance(found, tuple):
                answers[call.id] = found
            elif call.name in self.execute_tools or call.name in harmless:
                execute.add(call.id)
            else:
                return f"{refusal or found}; {call.name} is not named in execute_tools, and nothing was executed"
        return Prepared(answers, frozenset(execute))

    async def _recorded(self, state: State, earlier: Sequence[ToolCall], call: ToolCall) -> tuple[Message, Grade] | str:
        """One call's recorded result, given the calls of the same action before it."""
        if call.name in self.bound_to_state:
            return f"{call.name} {self.bound_to_state[call.name]}, so that a recorded result does not hold here"
        before = state.extend(Step(Message.assistant(tool_calls=earlier))) if earlier else state
        action = Message.assistant(tool_calls=[call])
        step = await self.recorded.step(before, action)
        found = self._answers(step, action)
        if found is None:
            return step.error or f"{call.name} has no recorded result"
        answer, grade = found[call.id]
        return answer, min(grade, Grade.REUSED)

    def _holds(self, call: ToolCall, grade: Grade) -> bool:
        return grade is Grade.EXACT or call.name not in self.bound_to_state

    @staticmethod
    def _answers(step: Step, action: Message) -> dict[str, tuple[Message, Grade]] | None:
        """Each call's answer and grade; None where one has none."""
        if step.error is not None:
            return None
        places = {id(message): i for i, message in enumerate(step.observations)}
        found: dict[str, tuple[Message, Grade]] = {}
        for call, answer in zip(action.tool_calls, call_answers(step), strict=True):
            if answer is None:
                return None
            place = places[id(answer)]
            grade = step.grades[place] if place < len(step.grades) else Grade.EXECUTED
            found[call.id] = (with_call_id(answer, call), grade)
        return found


def bound_to_state(
    tools: Mapping[str, Any], written: Iterable[CheckpointTuple], messages_key: str, declared: Collection[str]
) -> dict[str, str]:
    """The tools whose results are no matter of their arguments alone, with the reason.

    Those that are given the graph's state, unless their effect is `declared`; and those that wrote more than their answer.
    """
    from langgraph.prebuilt.tool_node import _get_all_injected_args

    found = {}
    for name, tool in tools.items():
        injected = _get_all_injected_args(tool)
        if name not in declared and (injected.state or injected.runtime or injected.store):
            found[name] = "is given the graph's state"
    for checkpoint in written:
        if not checkpoint.config["configurable"].get("checkpoint_ns"):
            found |= _wrote_more(checkpoint.pending_writes or (), messages_key)
    return found


def _wrote_more(writes: Iterable[tuple[str, str, Any]], messages_key: str) -> dict[str, str]:
    tasks: dict[str, list[tuple[str, Any]]] = {}
    for task, channel, value in writes:
        tasks.setdefault(task, []).append((channel, value))
    found: dict[str, str] = {}
    for wrote in tasks.values():
        said = [
            message for channel, value in wrote if channel == messages_key for message in (value if isinstance(value, list) else [value])
        ]
        names = [str(message.name) for message in said if getattr(message, "type", "") == "tool"]
        others = {channel for channel, _ in wrote if channel != messages_key and not channel.startswith(("__", "branch:"))}
        led = {channel for channel, _ in wrote if channel.startswith("branch:")}
        if names and (others or len(led) > 1 or len(names) < len(said)):
            more = ", ".join(sorted(others)) or ("where the graph goes on" if len(led) > 1 else "other messages")
            found |= dict.fromkeys(names, f"decided {more} beside its answer")
    return found

"""Re-enactment from messages alone: tools answer what the log says they answered, where that is still true.

A recorded result holds on a branch if nothing that changed its resource differs: the writes before it, as the branch made
them, equal those before it in the log. Everything is derived from the state that is asked about, so a branch has its own
cursors and resampling never consumes an answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from counterplay.core.canonical import canonical, chain_key, content_key
from counterplay.core.effects import EXTERNAL, Effect, overlap
from counterplay.core.nouns import Grade, Message, State, Step, ToolCall, ToolSpec, Trajectory
from counterplay.core.protocols import Environment, fingerprint_of
from counterplay.replay.live import prefix_keys


@dataclass(frozen=True, slots=True)
class _Write:
    signature: str
    resource: str


@dataclass(frozen=True, slots=True)
class _Occurrence:
    """One recorded answer. `basis` identifies the writes it depends on; `place` is (trajectory, step, call)."""

    place: tuple[int, int, int]
    basis: str
    answer: Message


class RecordedEnvironment:
    """Answers from logged `trajectories` that all began in one and the same world (the attempts at one task).

    In a state that the log knows, the logged action goes on exactly as logged (grade `exact`). Elsewhere a call is
    answered by the recorded result of an equal call if no differing write on its resource came between (`reused`).
    Failing that, `allow_stale` gives a read its recorded result all the same (`stale`), and everything else is left to
    `fallback`, or ends the branch where there is none: a step with `truncated`, no observations and the reason in
    `error`. Nothing is executed here, so an external call is never repeated.

    A user's answer is only ever exact. Where nothing ever followed a text in the log, a text ends the episode.
    The effect of a tool is looked up in `effects`, then in `tools`, then in the trajectories; unknown is external, and an
    external call counts as a write on everything.
    """

    def __init__(
        self,
        trajectories: Iterable[Trajectory],
        *,
        tools: Sequence[ToolSpec] | None = None,
        effects: Mapping[str, Effect] | None = None,
        allow_stale: bool = False,
        fallback: Environment | None = None,
    ) -> None:
        self.trajectories = tuple(trajectories)
        self.allow_stale, self.fallback = allow_stale, fallback
        logged = {tool.name: tool.effect for t in reversed(self.trajectories) for tool in t.tools}
        self.effects: Mapping[str, Effect] = logged | {tool.name: tool.effect for tool in tools or ()} | dict(effects or {})
        self._paths: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._path_of: dict[str, str] = {}
        self._answers: dict[str, list[_Occurrence]] = defaultdict(list)
        for index, trajectory in enumerate(self.trajectories):
            self._learn(index, trajectory)
        self._texts_end = all(step.action.tool_calls for t in self.trajectories for step in t.steps[:-1]) and not any(
            t.steps[-1].observations for t in self.trajectories if t.steps and not t.steps[-1].action.tool_calls
        )

    async def step(self, state: State, action: Message) -> Step:
        known = self._logged_step(state, action)
        if known is not None:
            return known
        if not action.tool_calls and self._texts_end:
            return Step(action, terminated=True)
        outcome = self._answer(state, action) if action.tool_calls else "the log does not say what follows this text after this prefix"
        if isinstance(outcome, Step):
            return outcome
        if self.fallback is not None:
            return await self.fallback.step(state, action)
        return Step(action, truncated=True, error=f"not in the recording: {outcome}")

    @cached_property
    def fingerprint(self) -> str:
        """Names the recordings, the effects and what is allowed."""
        effects = canonical({name: str(effect) for name, effect in self.effects.items()})
        behind = fingerprint_of(self.fallback) if self.fallback is not None else ""
        return f"recorded:{content_key(*(t.key for t in self.trajectories), effects, str(self.allow_stale), behind)}"

    def _learn(self, index: int, trajectory: Trajectory) -> None:
        log = _BranchLog(self.effects)
        paths, keys = list(path_keys(trajectory)), prefix_keys(trajectory)
        for number, step in enumerate(trajectory.steps):
            self._paths[paths[number]].append((index, number))
            self._path_of[next(keys)] = paths[number]
            for place, (call, answer) in enumerate(zip(step.action.tool_calls, call_answers(step), strict=True)):
                basis = log.basis(call)
                if answer is not None:
                    self._answers[call.signature].append(_Occurrence((index, number, place), basis, answer))
                log.add(call)

    def _logged_step(self, state: State, action: Message) -> Step | None:
        """What followed this action in a trajectory with this very prefix; None where the log has none."""
        # Forks are the log's to the byte; hashing such a path again would cost more than the answer.
        key = self._path_of.get(state.key) or list(path_keys(state))[-1]
        places = [(self.trajectories[index].steps, number) for index, number in self._paths.get(key, ())]
        alike = [(steps, number) for steps, number in places if steps[number].action.signature == action.signature]
        if not alike:
            return None
        steps, number = next(((steps, number) for steps, number in alike if steps[number].action == action), alike[0])
        return _continued(steps[number], action, last=number == len(steps) - 1)

    def _answer(self, state: State, action: Message) -> Step | str:
        """The action's step out of recorded results, or why there is none."""
        log = _BranchLog(self.effects)
        for step in state.steps:
            for call in step.action.tool_calls:
                log.add(call)
        closest = self._closeness(state)
        observations, grades = [], []
        for call in action.tool_calls:
            found = self._find(call, log, closest)
            if isinstance(found, str):
                return found
            observations.append(with_call_id(found[0], call))
            grades.append(found[1])
            log.add(call)
        return Step(action, tuple(observations), grades=tuple(grades))

    def _find(self, call: ToolCall, log: _BranchLog, closest: Mapping[int, int]) -> tuple[Message, Grade] | str:
        recorded = sorted(self._answers.get(call.signature, ()), key=lambda o: (-closest.get(o.place[0], 0), o.place))
        if not recorded:
            return f"{call.name} was never called with these arguments ({_short(call.arguments)})"
        kind = log.effect(call).kind
        valid = [occurrence for occurrence in recorded if occurrence.basis == log.basis(call)]
        if not valid:
            if kind == "read" and self.allow_stale:
                closest_log = recorded[0].place[0]
                return [o.answer for o in recorded if o.place[0] == closest_log][-1], Grade.STALE
            undeclared = "" if call.name in self.effects else " (its effect is not declared, so it counts as external)"
            return f"{call.name} was called with these arguments, but something that it depends on differs{undeclared}"
        if len({occurrence.answer.content_text for occurrence in valid}) == 1:
            return valid[0].answer, Grade.REUSED
        return _nth(call, valid, log.seen(call), kind)

    def _closeness(self, state: State) -> dict[int, int]:
        """How many steps each trajectory shares with this state, by trajectory index; nothing to choose by where there is only one."""
        shared: dict[int, int] = {}
        if len(self.trajectories) == 1:
            return shared
        for length, key in enumerate(path_keys(state)):
            here = self._paths.get(key, ())
            if not here:
                break
            shared.update((index, length) for index, _ in here)
        return shared


class _BranchLog:
    """What the calls of one branch were and what they changed, in order."""

    def __init__(self, effects: Mapping[str, Effect]) -> None:
        self._effects = effects
        self._writes: list[_Write] = []
        self._calls: list[tuple[ToolCall, int]] = []

    def effect(self, call: ToolCall) -> Effect:
        return self._effects.get(call.name, EXTERNAL)

    def add(self, call: ToolCall) -> None:
        self._calls.append((call, len(self._writes)))
        effect = self.effect(call)
        if effect.kind in ("write", "external"):
            self._writes.append(_Write(call.signature, effect.touches(call.args)))

    def seen(self, call: ToolCall) -> int:
        """How often this call was made with nothing changed since that it depends on."""
        basis, earlier = self.basis(call), [(c, n) for c, n in self._calls if c.name == call.name and c.signature == call.signature]
        return sum(self.basis(c, n) == basis for c, n in earlier)

    def basis(self, call: ToolCall, after: int | None = None) -> str:
        """Identifies the writes that a call's result can depend on: those on its resource, and those on what they touched in turn.

        `after` counts the writes that came before the call; None means all of them.
        """
        effect = self.effect(call)
        if effect.kind == "pure":
            return ""
        touched, relevant = {effect.touches(call.args)}, []
        for write in reversed(self._writes[:after]):
            if any(overlap(write.resource, resource) for resource in touched):
                touched.add(write.resource)
                relevant.append(write.signature)
        return content_key(*relevant)


def path_keys(trajectory: Trajectory) -> Iterator[str]:
    """A key for every prefix, shortest first: equal where prompt, actions and observations are equal apart from tool-call ids."""
    key = chain_key("", *(message.wire for message in trajectory.prompt))
    yield key
    for step in trajectory.steps:
        seen = (canonical([message.role, message.content]) for message in step.observations)
        key = chain_key(key, step.action.signature, *seen)
        yield key


def call_answers(step: Step) -> list[Message | None]:
    """The tool result of each call of a step, in the order of the calls; None where the log has none.

    Matched by id where the ids tell the calls apart, else by place: logs lose ids, and some use one twice.
    """
    calls = step.action.tool_calls
    answers = [message for message in step.observations if message.role == "tool"]
    by_id = {message.tool_call_id: message for message in answers}
    ids = [call.id for call in calls]
    if len(set(ids)) == len(ids) and len(by_id) == len(answers) and set(by_id) <= set(ids):
        return [by_id.get(call.id) for call in calls]
    return [answers[i] if i < len(answers) else None for i in range(len(calls))]


def with_call_id(message: Message, call: ToolCall) -> Message:
    """A recorded tool result as the answer to `call`: the same bytes where the id is right already."""
    if message.tool_call_id == call.id:
        return message
    return Message.from_openai({**message.fields, "tool_call_id": call.id})


def _continued(logged: Step, action: Message, *, last: bool) -> Step:
    """A logged step under an action that does the same. The log's last step ends the branch where it leaves something unanswered."""
    answered = call_answers(logged)
    ids = {id(message): call for call, message in zip(action.tool_calls, answered, strict=True) if message is not None}
    observations = tuple(with_call_id(m, ids[id(m)]) if id(m) in ids else m for m in logged.observations)
    step = replace(logged, action=action, observations=observations, sampled=True, grades=(Grade.EXACT,) * len(observations))
    if step.finished or (observations and None not in answered) or not last:
        return step
    if not action.tool_calls:
        return replace(step, terminated=True)
    return replace(step, truncated=True, error="not in the recording: it ends before these tools answered")


def _nth(call: ToolCall, valid: Sequence[_Occurrence], seen: int, kind: str) -> tuple[Message, Grade] | str:
    """Equal calls that had different answers with nothing changed between: a branch gets them in the order of the closest log."""
    if kind == "pure":
        return f"{call.name} is declared pure, but the log has different answers to these arguments"
    own = [occurrence for occurrence in valid if occurrence.place[0] == valid[0].place[0]]
    if seen < len(own):
        return own[seen].answer, Grade.REUSED
    return f"{call.name} was called {len(own)} times with these arguments and answered differently; this would be one more"


def _short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."

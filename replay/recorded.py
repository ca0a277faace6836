"""Re-enactment from messages alone: tools answer what the log says they answered, where that is still true.

A recorded result holds on a branch if nothing that it depends on differs: the writes in its causal past (`causality`), as the
branch made them, equal those in the log. Everything is derived from the state that is asked about, so a branch has its own
cursors and resampling never consumes an answer.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from counterplay.core.canonical import canonical, chain_key, content_key
from counterplay.core.effects import EVERYTHING, EXTERNAL, Effect
from counterplay.core.nouns import Grade, Message, State, Step, ToolCall, ToolSpec, Trajectory
from counterplay.core.protocols import Environment, fingerprint_of
from counterplay.replay.causality import Branch, Made, Write, Written, after, influences, past_key
from counterplay.replay.divergence import Comparable
from counterplay.replay.signatures import CallForm, action_signature, call_forms, said

_VISITED = 4096
_NAMED = 3


@dataclass(frozen=True, slots=True)
class _Occurrence:
    """One recorded answer. `place` is (trajectory, step, call); `text` what is compared of it; `grounds` the writes it depends on."""

    place: tuple[int, int, int]
    answer: Message
    text: str
    grounds: tuple[Write, ...]


class RecordedEnvironment:
    """Answers from logged `trajectories` that all began in one and the same world (the attempts at one task).

    In a state that the log knows, the logged action goes on exactly as logged (grade `exact`). Elsewhere a call is
    answered by the recorded result of an equal call if no differing write on its resource came between (`reused`).
    Failing that, `allow_stale` gives a read its recorded result all the same (`stale`), and everything else is left to
    `fallback`, or ends the branch where there is none: a step with `truncated`, no observations and the reason in
    `error`. Nothing is executed here, so an external call is never repeated.

    A user's answer is only ever exact. Where nothing ever followed a text in the log, a text ends the episode.
    The effect of a tool is looked up in `effects`, then in `tools`, then in the trajectories; unknown is external, and an
    external call counts as a write on its resource, on everything where it declares none. `users_act` counts a user's turn as
    one on everything, for worlds in which users do more than talk.

    `comparable` maps arguments and texts of both sides before they are matched. It is for logs that were redacted on their way
    in, and is that redaction (a store's `Redactor.text`): it must leave what it has redacted as it is, and keep apart what tools
    would tell apart. What is answered is what the log holds.
    """

    def __init__(
        self,
        trajectories: Iterable[Trajectory],
        *,
        tools: Sequence[ToolSpec] | None = None,
        effects: Mapping[str, Effect] | None = None,
        allow_stale: bool = False,
        users_act: bool = False,
        fallback: Environment | None = None,
        comparable: Comparable | None = None,
    ) -> None:
        self.trajectories = tuple(trajectories)
        self.allow_stale, self.users_act, self.fallback, self.comparable = allow_stale, users_act, fallback, comparable
        logged = {tool.name: tool.effect for t in reversed(self.trajectories) for tool in t.tools}
        self.effects: Mapping[str, Effect] = logged | {tool.name: tool.effect for tool in tools or ()} | dict(effects or {})
        self._paths: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._actions: dict[tuple[int, int], str] = {}
        self._continued: dict[tuple[int, int], Step] = {}
        self._answers: dict[tuple[str, str], list[_Occurrence]] = defaultdict(list)
        self._asked: dict[str, list[_Occurrence]] = defaultdict(list)
        self._branches: dict[str, Branch] = {}
        self._visited: dict[str, Branch] = {}
        self._lock = threading.Lock()
        for index, trajectory in enumerate(self.trajectories):
            self._learn(index, trajectory)
        self._texts_end = all(step.action.tool_calls for t in self.trajectories for step in t.steps[:-1]) and not any(
            t.steps[-1].observations for t in self.trajectories if t.steps and not t.steps[-1].action.tool_calls
        )

    async def step(self, state: State, action: Message) -> Step:
        branch = self._at(state)
        known = self._logged_step(branch, action)
        if known is not None:
            return known
        if not action.tool_calls and self._texts_end:
            return Step(action, terminated=True)
        outcome = self._answer(branch, action) if action.tool_calls else "the log does not say what follows this text after this prefix"
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
        more = ["users act"] if self.users_act else []
        more += [] if self.comparable is None else [f"compared by {fingerprint_of(self.comparable)}"]
        return f"recorded:{content_key(*(t.key for t in self.trajectories), effects, str(self.allow_stale), behind, *more)}"

    def _learn(self, index: int, trajectory: Trajectory) -> None:
        branch = self._root(trajectory)
        for number, step in enumerate(trajectory.steps):
            self._branches[trajectory.prefix_keys[number]] = branch
            self._paths[branch.path].append((index, number))
            taken = self._taken(branch, step)
            self._actions[index, number] = taken.signature
            for place, (made, answer) in enumerate(zip(taken.branch.made, call_answers(step), strict=True)):
                if answer is not None:
                    occurrence = _Occurrence((index, number, place), answer, said(answer, self.comparable), taken.grounds[place])
                    self._answers[made.signature, made.past].append(occurrence)
                    self._asked[made.signature].append(occurrence)
            branch = taken.branch
        self._branches[trajectory.prefix_keys[-1]] = branch

    def _at(self, state: State) -> Branch:
        """The branch of a state, out of that of its nearest prefix that is known."""
        found = self._known(state.key)
        if found is not None:
            return found
        keys = state.prefix_keys
        start = len(state)
        while found is None and start:
            start -= 1
            found = self._known(keys[start])
        branch = self._root(state) if found is None else found
        for step in state.steps[start:]:
            branch = self._taken(branch, step).branch
        with self._lock:
            self._visited[keys[-1]] = branch
            if len(self._visited) > _VISITED:
                del self._visited[next(iter(self._visited))]
        return branch

    def _known(self, key: str) -> Branch | None:
        return self._branches.get(key) or self._visited.get(key)

    def _root(self, state: State) -> Branch:
        """A branch at the bare prompt."""
        wires = (message.wire for message in state.prompt)
        shown = wires if self.comparable is None else (self.comparable(canonical(dict(message.fields))) for message in state.prompt)
        return Branch(chain_key("", *shown))

    def _taken(self, branch: Branch, step: Step) -> _Taken:
        """The branch one step on."""
        forms = call_forms(step.action, self.comparable)
        seen = [said(message, self.comparable) for message in step.observations]
        written, made, grounds = branch.written, [], []
        for place, (form, answer) in enumerate(zip(forms, call_answers(step), strict=True)):
            # A call that was never answered may or may not have been carried out: it equals none but itself.
            text = f"unanswered {place} {branch.path}" if answer is None else said(answer, self.comparable)
            found = influences(written, form, self._effect(form))
            made.append(Made(form.signature, past_key(found)))
            grounds.append(found)
            written = after(written, form, self._effect(form), made[-1].past, text)
        if self.users_act:
            for message, text in zip(step.observations, seen, strict=True):
                written = _after_turn(written, text) if message.role == "user" else written
        signature = action_signature(step.action, forms, self.comparable)
        path = chain_key(branch.path, signature, *seen)
        return _Taken(Branch(path, written, tuple(made), branch), signature, tuple(grounds))

    def _effect(self, form: CallForm) -> Effect:
        return self.effects.get(form.name, EXTERNAL)

    def _logged_step(self, branch: Branch, action: Message) -> Step | None:
        """What followed this action in a trajectory with this very prefix; None where the log has none."""
        places = self._paths.get(branch.path)
        if not places:
            return None
        for index, number in places:
            if self.trajectories[index].steps[number].action == action:
                return self._goes_on(index, number)
        signature = action_signature(action, call_forms(action, self.comparable), self.comparable)
        alike = next((place for place in places if self._actions[place] == signature), None)
        return None if alike is None else self._continue(*alike, action)

    def _goes_on(self, index: int, number: int) -> Step:
        """The logged step under the logged action: one object, however often it is asked for."""
        step = self._continued.get((index, number))
        if step is None:
            step = self._continued[index, number] = self._continue(index, number, self.trajectories[index].steps[number].action)
        return step

    def _continue(self, index: int, number: int, action: Message) -> Step:
        steps = self.trajectories[index].steps
        return _continued(steps[number], action, last=number == len(steps) - 1)

    def _answer(self, branch: Branch, action: Message) -> Step | str:
        """The action's step out of recorded results, or why there is none."""
        here, observations, grades = branch, [], []
        for call, form in zip(action.tool_calls, call_forms(action, self.comparable), strict=True):
            answered = self._find(call, form, here)
            if isinstance(answered, str):
                return answered
            occurrence, grade = answered
            observations.append(with_call_id(occurrence.answer, call))
            grades.append(grade)
            past = past_key(influences(here.written, form, self._effect(form)))
            written = after(here.written, form, self._effect(form), past, occurrence.text)
            here = Branch(branch.path, written, (Made(form.signature, past),), here)
        return Step(action, tuple(observations), grades=tuple(grades))

    def _find(self, call: ToolCall, form: CallForm, here: Branch) -> tuple[_Occurrence, Grade] | str:
        """The recorded answer to a call that comes next, with its grade, or why there is none."""
        grounds = influences(here.written, form, self._effect(form))
        asked = Made(form.signature, past_key(grounds))
        recorded, valid = self._asked.get(asked.signature), self._answers.get((asked.signature, asked.past))
        if not recorded:
            return f"{call.name} was never called with these arguments ({_short(call.arguments)})"
        kind = self._effect(form).kind
        if not valid:
            if kind == "read" and self.allow_stale:
                return self._closest(recorded, here)[-1], Grade.STALE
            undeclared = "" if call.name in self.effects else " (its effect is not declared, so it counts as external)"
            there = _names(self._closest(recorded, here)[0].grounds)
            differs = f"here it follows {_names(grounds)}, in the log {there}"
            return f"{call.name} was called with these arguments, but something that it depends on differs{undeclared}: {differs}"
        if len({occurrence.text for occurrence in valid}) == 1:
            return valid[0], Grade.REUSED
        seen = sum(made == asked for made in here.calls())
        return _nth(call, self._closest(valid, here), seen, kind)

    def _closest(self, occurrences: Sequence[_Occurrence], here: Branch) -> list[_Occurrence]:
        """Those of the trajectory that shares the most steps with this branch."""
        shared: dict[int, int] = {}
        for length, branch in enumerate(here.line()):
            if branch.path not in self._paths:
                break
            shared.update((index, length) for index, _ in self._paths[branch.path])
        closest = max((o.place[0] for o in occurrences), key=lambda index: (shared.get(index, 0), -index))
        return [o for o in occurrences if o.place[0] == closest]


@dataclass(frozen=True, slots=True)
class _Taken:
    """A step taken: the branch after it, the action's signature, and the writes that each call can depend on."""

    branch: Branch
    signature: str
    grounds: tuple[tuple[Write, ...], ...]


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


def _nth(call: ToolCall, own: Sequence[_Occurrence], seen: int, kind: str) -> tuple[_Occurrence, Grade] | str:
    """Equal calls that had different answers with nothing changed between: a branch gets them in the order of the closest log."""
    if kind == "pure":
        return f"{call.name} is declared pure, but the log has different answers to these arguments"
    if seen < len(own):
        return own[seen], Grade.REUSED
    return f"{call.name} was called {len(own)} times with these arguments and answered differently; this would be one more"


def _after_turn(written: Written, text: str) -> Written:
    """What was written once a user who can act has had a turn: anything."""
    past = past_key(written.before(EVERYTHING))
    return written.after(EVERYTHING, Write(content_key("user", text, past), "a user's turn"))


def _names(writes: Sequence[Write]) -> str:
    """Writes in words."""
    names = sorted({_short(write.name, 60) for write in writes})
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (", ".join(names[:_NAMED]) or "no write") + more


def _short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."

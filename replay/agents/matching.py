"""What a re-enacted agent asks, compared with what the recorded one asked: request by request, the first difference named.

Request k of a recorded trajectory is its tools, the messages before step k and the parameters of that call. A request is
answered by the recorded call it equals, in whatever order calls that ran side by side come; one that equals none is a divergence
of a named kind, at a named place, from the call that it must have been meant to be.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from counterplay.core.canonical import canonical, chain_key
from counterplay.core.nouns import Call, Message, Trace, Trajectory
from counterplay.replay.agents.differences import Difference, first_difference
from counterplay.replay.agents.recorded_calls import Order, RecordedCall, recorded_calls
from counterplay.replay.agents.requests import Asked, Normal, Normaliser, params_of
from counterplay.replay.live import Comparable

Kind: TypeAlias = Literal["same", "reordered", "argument_drift", "prompt_drift", "result_drift", "extra_call", "missing_call"]
"""`reordered` equals a recorded request that is not next. `argument_drift` is in a tool call or the request's own parameters,
`prompt_drift` in what anybody else said, `result_drift` in a tool's answer."""

KINDS: tuple[Kind, ...] = ("same", "reordered", "argument_drift", "prompt_drift", "result_drift", "extra_call", "missing_call")
TRUE: tuple[Kind, ...] = ("same", "reordered")
"""The kinds whose recorded answer is the true one."""

TAPE = "tape"
INSIDE_TOOL = "sub-agent"
"""The name that tapes give to a context whose models were asked from inside of a tool."""
_WORDS = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Match:
    """What one request is: `call` is the recorded one that it equals or was meant to be; None for an extra call.

    `skipped` counts recorded calls that should have come before it and have not.
    """

    kind: Kind
    call: RecordedCall | None = None
    difference: Difference | None = None
    skipped: int = 0


@dataclass
class _Context:
    """The messages of one recorded trajectory in normal form, and where the request of each step ends."""

    trajectory: Trajectory
    normals: list[Normal]
    messages: list[Message]
    ends: list[int]
    tools: str
    keys: list[str] = field(default_factory=list)

    def hash(self) -> None:
        self.keys = [""]
        for normal in self.normals:
            self.keys.append(chain_key(self.keys[-1], normal))


class Matcher:
    """Compares requests with the calls of `trace`, each of which answers once.

    `window`: how many recorded calls may be skipped by one that equals a later call; a call beyond it is no match. Where a
    divergence is tolerated (`take` after a match that is not true), the changed messages are what is expected from then on, so
    that one change is one divergence. `comparable` maps the texts of both sides first.
    """

    def __init__(self, trace: Trace, *, window: int = 3, comparable: Comparable | None = None) -> None:
        self.trace, self.window = trace, window
        self._normaliser = Normaliser(comparable)
        every = (trace.trajectory, *(sub.trajectory for sub in trace.sub_trajectories))
        self._contexts = [self._context(trajectory) for trajectory in every]
        self.calls = tuple(recorded_calls(trace))
        self._order = Order(trace, self.calls)
        self._open = dict.fromkeys(range(len(self.calls)))
        self._skipped: set[int] = set()
        self._excused = {at for at, call in enumerate(self.calls) if self._agent(call) == INSIDE_TOOL}
        self._accepted: dict[str, str] = {}
        self._place = {(call.trajectory, call.step): at for at, call in enumerate(self.calls)}
        self._by_key: dict[str, list[int]] = defaultdict(list)
        self._index()

    def match(self, asked: Asked) -> Match:
        """What this request is; its messages are the whole conversation (see `Conversations`). Nothing is used up by asking."""
        normals = self._normaliser.of(asked.messages)
        return self._equal(asked, self._candidates(normals)) or self._drifted(asked, normals)

    def recorded(self, asked: Asked) -> RecordedCall | None:
        """A recorded call of just this request, wherever it stands; None where there is none, or no more."""
        same = [self.calls[at] for at in self._candidates(self._normaliser.of(asked.messages))]
        return next((call for call in same if self._beside(asked, call) is None), None)

    def _candidates(self, normals: Sequence[Normal]) -> list[int]:
        """The calls not yet asked for whose messages are these."""
        return [at for at in self._by_key.get(chain_key("", *normals), ()) if at in self._open]

    def is_request(self, asked: Asked, trajectory: int, step: int) -> bool:
        """Whether a request has the messages of this step's; False past the end."""
        context = self._contexts[trajectory]
        known = step < len(context.ends) and context.ends[step] == len(asked.messages)
        return known and context.keys[context.ends[step]] == chain_key("", *self._normaliser.of(asked.messages))

    def take(self, match: Match, asked: Asked) -> None:
        """Use up the recorded call of a match: it has answered this request."""
        if match.call is None:
            return
        at = self._place[match.call.trajectory, match.call.step]
        self._skipped |= {other for other in self._open if other != at and self._precedes(other, at)}
        self._open.pop(at, None)
        self._skipped.discard(at)
        if match.kind not in TRUE:
            self._accept(match.call, asked)

    def alike(self, match: Match) -> list[RecordedCall]:
        """The further answers of the very same call: it was asked for several at once."""
        if match.call is None or match.call.call.response_id is None:
            return []
        key = self._key(match.call)
        others = [self.calls[at] for at in self._by_key.get(key, ()) if at in self._open]
        return [call for call in others if call != match.call and call.call.response_id == match.call.call.response_id]

    def open(self, before: RecordedCall | None = None) -> list[RecordedCall]:
        """The calls that have not been asked for and should have been; only those that came before `before` where it is given."""
        limit = None if before is None else self._place[before.trajectory, before.step]
        left = [at for at in self._open if at not in self._excused]
        return [self.calls[at] for at in left if limit is None or (at != limit and self._precedes(at, limit))]

    def excuse(self, where: tuple[int, int] | None) -> None:
        """A tool of this step was answered by the recording: the models that it asked will not be asked.

        Tapes say which calls those are. Other logs don't: there it is every context that the step started.
        """
        if where is not None and not where[0] and self.trace.source.format != TAPE:
            self.excuse_contexts(at for at, sub in enumerate(self.trace.sub_trajectories, 1) if sub.parent_step == where[1])

    def excuse_contexts(self, trajectories: Iterable[int]) -> None:
        """The calls of these trajectories need not be made."""
        wanted = set(trajectories)
        self._excused |= {at for at, call in enumerate(self.calls) if call.trajectory in wanted}

    def find(self, trajectory: int, step: int) -> RecordedCall | None:
        """The recorded call of a step; None where no model was asked there."""
        at = self._place.get((trajectory, step))
        return None if at is None else self.calls[at]

    def _context(self, trajectory: Trajectory) -> _Context:
        ends, messages = [len(trajectory.prompt)], list(trajectory.messages)
        for step in trajectory.steps:
            ends.append(ends[-1] + len(step.messages))
        tools = canonical([_shown(tool.fields) for tool in trajectory.tools])
        context = _Context(trajectory, self._normaliser.of(messages), messages, ends, tools)
        context.hash()
        return context

    def _index(self) -> None:
        self._by_key.clear()
        for at, call in enumerate(self.calls):
            self._by_key[self._key(call)].append(at)

    def _key(self, call: RecordedCall) -> str:
        context = self._contexts[call.trajectory]
        return context.keys[context.ends[call.step]]

    def _equal(self, asked: Asked, candidates: Sequence[int]) -> Match | None:
        """The match among calls with equal messages; None where there is none or only one out of reach."""
        best: Match | None = None
        for at in candidates:
            skipped = self._distance(at)
            difference = self._beside(asked, self.calls[at])
            if difference is None and skipped <= self.window:
                match = Match("same" if not skipped else "reordered", self.calls[at], None, skipped)
            elif difference is None:
                match = Match("missing_call", self.calls[at], self._gap(at), skipped)
            elif skipped <= self.window:
                match = Match("argument_drift", self.calls[at], difference, skipped)
            else:
                continue
            if best is None or _order(match) < _order(best):
                best = match
        return best

    def _drifted(self, asked: Asked, normals: Sequence[Normal]) -> Match:
        """The call that a request which equals none was meant to be."""
        best: tuple[int, int, int] | None = None
        if chain_key("", *normals) in self._by_key and not self._candidates(normals):
            return Match("extra_call", None, self.surplus(asked))
        for at in self._open:
            skipped = self._distance(at)
            if skipped > self.window:
                continue
            equal = self._plausible(asked, normals, self.calls[at])
            if equal is not None and (best is None or (-equal, skipped) < best[:2]):
                best = (-equal, skipped, at)
        if best is None:
            return Match("extra_call", None, self.surplus(asked))
        call = self.calls[best[2]]
        kind, difference = self._message_difference(asked, normals, call)
        return Match(kind, call, difference, best[1])

    def _plausible(self, asked: Asked, normals: Sequence[Normal], call: RecordedCall) -> int | None:
        """How many messages a request has in common with a recorded one; None where it can't have been meant to be it."""
        context = self._contexts[call.trajectory]
        wanted = context.normals[: context.ends[call.step]]
        equal = len(set(normals).intersection(wanted))
        if len(wanted) > 2:
            return equal if 2 * equal >= len(set(wanted)) else None
        same_tools = {tool.name for tool in asked.tools} == {tool.name for tool in context.trajectory.tools}
        if not same_tools and not (wanted and list(wanted) == list(normals[: len(wanted)])):
            return None
        close = equal or (len(normals) == len(wanted) and _alike(normals, wanted))
        return equal if close else None

    def _message_difference(self, asked: Asked, normals: Sequence[Normal], call: RecordedCall) -> tuple[Kind, Difference]:
        context = self._contexts[call.trajectory]
        end = context.ends[call.step]
        place = next((i for i in range(min(len(normals), end)) if normals[i] != context.normals[i]), min(len(normals), end))
        got = asked.messages[place] if place < len(asked.messages) else None
        wanted = context.messages[place] if place < end else None
        difference = Difference.of_messages(place, got, wanted, self._normaliser.text)
        return _kind(got, wanted), difference

    def _beside(self, asked: Asked, call: RecordedCall) -> Difference | None:
        """The first difference in tools or parameters."""
        context = self._contexts[call.trajectory]
        if context.trajectory.tools or call.call.completeness.tools:
            tools = [_shown(tool.fields) for tool in asked.tools]
            if canonical(tools) != context.tools:
                return first_difference(tools, [_shown(tool.fields) for tool in context.trajectory.tools], "tools")
        return self._params_difference(asked, call.call)

    def _params(self, asked: Asked, call: Call) -> tuple[dict[str, Any], dict[str, Any]]:
        """The parameters of a request and those of the recorded call."""
        got, wanted = params_of(asked.params), params_of(call.params)
        if "model" not in wanted and call.model is not None:
            wanted["model"] = call.model
        if self.trace.source.format != TAPE or not wanted:  # other recorders leave parameters out
            got = {name: value for name, value in got.items() if name in wanted}
        return _texts_mapped(got, self._normaliser), _texts_mapped(wanted, self._normaliser)

    def _params_difference(self, asked: Asked, call: Call) -> Difference | None:
        got, wanted = self._params(asked, call)
        if canonical(got) == canonical(wanted) or self._accepted.get(canonical(wanted)) == canonical(got):
            return None
        return first_difference(got, wanted, "")

    def surplus(self, asked: Asked) -> Difference:
        """What there is to say of a request that was not recorded."""
        key = chain_key("", *self._normaliser.of(asked.messages))
        repeated = next((self.calls[at] for at in self._by_key.get(key, ()) if at not in self._open), None)
        last = asked.messages[-1] if asked.messages else None
        said = "" if last is None else f"{last.role}: {last.content_text}"
        if repeated is not None:
            return Difference("", None, f"once more the request of {repeated.name}", "each recorded request once")
        following = next((self.calls[at].name for at in self._open), "")
        return Difference("", None, said, f"the request of {following}" if following else "no further request: the recording is over")

    def _gap(self, at: int) -> Difference:
        names = [self.calls[other].name for other in self._open if self._due(other) and self._precedes(other, at)]
        return Difference("", None, f"the request of {self.calls[at].name}", f"first the requests of {', '.join(names)}")

    def _accept(self, call: RecordedCall, asked: Asked) -> None:
        """Take the messages of a tolerated request for those that the later requests of this trajectory will repeat."""
        context = self._contexts[call.trajectory]
        messages = asked.messages
        end = context.ends[call.step]
        context.messages = [*messages, *context.messages[end:]]
        context.normals = self._normaliser.of(context.messages)
        context.ends = [place + len(messages) - end if at >= call.step else place for at, place in enumerate(context.ends)]
        context.tools = canonical([_shown(tool.fields) for tool in asked.tools])
        context.hash()
        self._index()
        got, wanted = self._params(asked, call.call)
        self._accepted[canonical(wanted)] = canonical(got)

    def _distance(self, at: int) -> int:
        return sum(other != at and self._due(other) and self._precedes(other, at) for other in self._open)

    def _due(self, at: int) -> bool:
        return at not in self._skipped and at not in self._excused

    def _agent(self, call: RecordedCall) -> str:
        return self.trace.sub_trajectories[call.trajectory - 1].agent if call.trajectory else ""

    def _precedes(self, first: int, second: int) -> bool:
        return self._order.precedes(self.calls[first], self.calls[second])


def _kind(got: Message | None, wanted: Message | None) -> Kind:
    roles = {message.role for message in (got, wanted) if message is not None}
    if roles == {"tool"}:
        return "result_drift"
    if roles == {"assistant"} and got is not None and wanted is not None:
        calls = [[call.signature for call in message.tool_calls] for message in (got, wanted)]
        return "argument_drift" if calls[0] != calls[1] else "prompt_drift"
    return "prompt_drift"


def _order(match: Match) -> tuple[bool, bool, int]:
    return (match.kind not in TRUE, match.kind == "missing_call", match.skipped)


def _shown(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A tool definition without the parts that are empty or at their default, and without cache marks."""
    inner = fields.get("function")
    shown = {name: value for name, value in fields.items() if value not in (None, False, "") and name != "cache_control"}
    return {**shown, "function": _shown(inner)} if isinstance(inner, Mapping) else shown


def _texts_mapped(params: Mapping[str, Any], normaliser: Normaliser) -> dict[str, Any]:
    return {name: normaliser.text(value) if isinstance(value, str) else value for name, value in params.items()}


def _alike(left: Iterable[str], right: Iterable[str]) -> bool:
    """Whether two short prompts, no message of which is the same, share at least half of their words."""
    words = [set(_WORDS.findall(" ".join(side))) for side in (left, right)]
    return 2 * len(words[0] & words[1]) >= len(words[0] | words[1])

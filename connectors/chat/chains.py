"""Calls that name an earlier answer in place of the messages before it, given the messages back.

A call of the Responses API holds only what is new; what `previous_response_id` stands for is put together from the log, in whatever
order the calls come in. Instructions are not inherited. Where the earlier call is not in the log, and for server-side
conversations, into which others may write, the prompt is known in part only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from counterplay.connectors import facts
from counterplay.connectors.chat.rows import LoggedCall
from counterplay.connectors.normalise import KnownPrompt
from counterplay.core.nouns import Coverage, Message


@dataclass(slots=True)
class _Link:
    """An answer: what its call `asked` and was `answered`, behind what `before` it stood there."""

    before: _Link | None
    asked: Sequence[Message]
    answered: tuple[Message, ...]
    inputs: Coverage


class Chains:
    """Hands calls on to `take` as soon as their messages are known. `share` gives the one kept copy of a message."""

    def __init__(self, take: Callable[[LoggedCall], None], share: Callable[[Message], Message]) -> None:
        self._take, self._share = take, share
        self._links: dict[str, _Link] = {}
        self._waiting: dict[str, list[LoggedCall]] = {}
        self._conversations: dict[str, list[LoggedCall]] = {}

    def add(self, call: LoggedCall) -> None:
        if not isinstance(call.messages, KnownPrompt):
            call = replace(call, messages=KnownPrompt(self._shared(call.messages)), instructions=self._shared(call.instructions))
        if call.conversation:
            self._conversations.setdefault(call.conversation, []).append(call)
        elif call.previous and call.previous not in self._links:
            self._waiting.setdefault(call.previous, []).append(call)
        else:
            self._resolve(call, self._links.get(call.previous or ""))

    def finish(self) -> None:
        """Hand on what still waits: whole conversations, and calls whose earlier ones are not in the log."""
        for calls in self._conversations.values():
            self._converse(calls)
        self._conversations.clear()
        coming = {call.call.response_id for calls in self._waiting.values() for call in calls}
        for missing in sorted(self._waiting, key=lambda response_id: response_id in coming):
            for call in self._waiting.pop(missing, ()):
                self._resolve(replace(call, inputs="partial"), None)

    def _resolve(self, call: LoggedCall, link: _Link | None) -> None:
        """Hand on a call, and then every call that waited for it."""
        ready = [(call, link)]
        while ready:
            call, before = ready.pop()
            resolved = self._behind(call, before)
            self._take(resolved)
            answer_id = call.call.response_id
            if answer_id and answer_id not in self._links and call.outputs:
                self._links[answer_id] = _Link(before, call.messages, (self._share(call.outputs[0]),), resolved.inputs)
                ready += [(waiting, self._links[answer_id]) for waiting in reversed(self._waiting.pop(answer_id, ()))]

    def _behind(self, call: LoggedCall, before: _Link | None) -> LoggedCall:
        if before is None and not call.instructions:
            return call
        links = [before] if before else []
        while links and links[-1].before:
            links.append(links[-1].before)
        context = [message for link in reversed(links) for message in (*link.asked, *link.answered)]
        inputs: Coverage = "partial" if before and before.inputs == "partial" else "stitched"
        return replace(
            call,
            messages=KnownPrompt((*call.instructions, *context, *call.messages)),
            instructions=(),
            inputs=inputs if before and call.inputs == "full" else call.inputs,
        )

    def _converse(self, calls: Iterable[LoggedCall]) -> None:
        """Each call of a conversation behind all earlier ones, in the order of their times."""
        link: _Link | None = None
        for call in sorted(calls, key=lambda call: call.call.started_at_us or 0):
            self._take(self._behind(replace(call, inputs="partial"), link))
            link = _Link(link, call.messages, tuple(map(self._share, call.outputs[:1])), "partial")
            if call.call.response_id:
                self._links.setdefault(call.call.response_id, link)

    def _shared(self, messages: Iterable[Message]) -> tuple[Message, ...]:
        return tuple(map(self._share, messages))


class Items:
    """Output items by id, for requests that repeat one by its id alone (`item_reference`)."""

    def __init__(self) -> None:
        self._known: dict[str, Mapping[str, Any]] = {}

    def learn(self, answer: Any) -> None:
        output = facts.record(answer).get("output")
        for item in map(facts.record, output if isinstance(output, list) else ()):
            if isinstance(item.get("id"), str):
                self._known.setdefault(item["id"], item)

    def wants(self, request: Mapping[str, Any]) -> bool:
        """Whether a request refers to an item that is not known yet."""
        return any(_reference(item) is not None and _reference(item) not in self._known for item in _input(request))

    def refers(self, request: Mapping[str, Any]) -> bool:
        """Whether a request refers to any item."""
        return any(_reference(item) is not None for item in _input(request))

    def resolved(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """The request with the items themselves; one that is not known stays a reference."""
        items = _input(request)
        if not any(_reference(item) in self._known for item in items):
            return request
        return {**request, "input": [self._known.get(_reference(item) or "", item) for item in items]}


def _input(request: Mapping[str, Any]) -> list[Any]:
    items = request.get("input")
    return items if isinstance(items, list) else []


def _reference(item: Any) -> str | None:
    """The id that an item refers to; None where it is an item itself."""
    fields = facts.record(item)
    return facts.word(fields.get("id")) if fields.get("type") == "item_reference" else None

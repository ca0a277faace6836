"""Calls whose request and answer stand in two records: batch files, logs with a row for each, stored completions and their messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from counterplay.connectors import facts
from counterplay.connectors.chat.rows import LoggedCall, call_of, request_of, response_of
from counterplay.connectors.lines import Entry
from counterplay.connectors.normalise import ROLES
from counterplay.core.records import Rejected

_SENT = ("role", "content", "name", "tool_calls", "tool_call_id", "function_call")


@dataclass(frozen=True)
class Half:
    """One half of a call: its key (None: the answer belongs to the request before it) and whether it is the request."""

    key: str | None
    asks: bool


def half_of(row: Mapping[str, Any]) -> Half | None:
    """What half of a call a record is; None where it is none."""
    own = facts.word(row.get("custom_id"))
    if own is not None and ("response" in row or isinstance(row.get("result"), dict)):
        return Half(f"batch {own}", asks=False)
    if own is not None and ("body" in row or "params" in row):
        return Half(f"batch {own}", asks=True) if request_of(row) is not None else None
    stored = _stored_id(row)
    if stored is not None:
        return Half(f"stored {stored}", asks="data" in row)
    if row.get("type") == "response" and response_of(row) is not None:
        return Half(_paired(row), asks=False)
    if row.get("type") == "request" and (request_of(row) is not None or is_conversation(row.get("messages"))):
        return Half(_paired(row), asks=True)
    return None


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


class Halves:
    """Requests that wait for their answers, and answers that wait for their requests."""

    def __init__(self) -> None:
        self._requests: dict[str, Entry] = {}
        self._answers: dict[str, Entry] = {}
        self._last = ""
        self._count = 0

    def add(self, half: Half, entry: Entry) -> Iterator[tuple[Entry, Entry | None]]:
        """The calls that this half completes or crowds out, as request and answer: usually one or none."""
        self._count += 1
        key = half.key or (f"# {self._count}" if half.asks else self._last)
        if half.asks:
            if key in self._requests:
                yield self._requests.pop(key), None
            self._requests[key], self._last = entry, key
        else:
            if key in self._answers:
                yield self._answers.pop(key), None
            self._answers[key] = entry
        if key in self._requests and key in self._answers:
            yield self._requests.pop(key), self._answers.pop(key)

    def leftover(self) -> Iterator[Entry]:
        """What nothing was found for, requests first."""
        yield from self._requests.values()
        yield from self._answers.values()


def joined(request: Entry, answer: Entry | None) -> LoggedCall | Rejected:
    """The call that two halves are. An answer without its request is Rejected. Raises ValueError where they can't be read."""
    half = half_of(request.value)
    if half is None or not half.asks:
        return request.reject("an answer without its request")
    if "data" in request.value:
        return _stored_call(request, answer)
    rows = [answer.value, request.value] if answer else [request.value]
    asked = request_of(request.value) or request.value
    return call_of(request, asked, _answer(answer.value) if answer else None, rows)


def _answer(row: Mapping[str, Any]) -> Any:
    """The answer in a row; in a batch of Anthropic's it is the message of a result, or what went wrong."""
    result = facts.record(row.get("result"))
    if not result:
        return row.get("response") if row.get("response") is not None else row if row.get("error") else response_of(row)
    if isinstance(result.get("message"), dict):
        return result["message"]
    error = facts.record(result.get("error"))
    return {"error": error.get("error") or error or f"the request was {result.get('type')}"}


def _stored_call(messages: Entry, completion: Entry | None) -> LoggedCall | Rejected:
    if completion is None:
        return messages.reject("the messages of a stored completion without the completion")
    sent = [_sent(message) for message in messages.value["data"]]
    return call_of(completion, {**completion.value, "messages": sent}, completion.value, [completion.value])


def _sent(message: Mapping[str, Any]) -> dict[str, Any]:
    parts = message.get("content_parts")
    content = {"content": parts} if isinstance(parts, list) and parts else {}
    return {**{key: message.get(key) for key in _SENT if message.get(key) is not None or key == "content"}, **content}


def _stored_id(row: Mapping[str, Any]) -> str | None:
    """The id of the stored completion that a record is, or whose messages it lists: each has that id and its place."""
    if row.get("object") == "chat.completion" and isinstance(row.get("choices"), list) and "messages" not in row:
        return facts.word(row.get("id"))
    data = row.get("data")
    if row.get("object") != "list" or not is_conversation(data) or not isinstance(data, list):
        return None
    stem, dash, place = str(data[0].get("id")).rpartition("-")
    return stem if dash and place.isdigit() else None


def _paired(row: Mapping[str, Any]) -> str | None:
    own = facts.word(row.get("request_id"))
    return None if own is None else f"row {own}"


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and value.get("role") in (*ROLES, "function")

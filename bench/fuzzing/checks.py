"""What must hold of whatever a connector makes of whatever file, and of the file's way into a store."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from counterplay.connectors.base import Connector, Item
from counterplay.connectors.testing import check_item
from counterplay.core.errors import SourceError
from counterplay.core.nouns import Message, Trace
from counterplay.core.records import Rejected
from counterplay.core.store.encoding import TraceDraft, call_row, header_row, score_row, step_row, sub_row, summary_row

HANG_S = 5.0
_TIMERS = ((signal.SIGPROF, signal.ITIMER_PROF, HANG_S), (signal.SIGALRM, signal.ITIMER_REAL, 12 * HANG_S))
_WHOLE = range(-(1 << 63), 1 << 63)
_SMALL = range(-(1 << 31), 1 << 31)
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("id", "task", "session", "agent", "format", "dialect", "uri", "outcome_source", "details", "metadata"), str),
    **dict.fromkeys(("model", "params", "finish_reason", "response_id", "provider", "inputs", "outputs", "error", "name", "value"), str),
    **dict.fromkeys(("source", "comment", "attributes"), str),
    **dict.fromkeys(("success", "streamed", "sampled", "terminated", "truncated", "redacted", "tools_known", "system_prompt"), bool),
    **dict.fromkeys(("reward", "cost_usd", "latency_s", "first_token_s", "scaled"), float),
    **dict.fromkeys(("tags", "notes", "grades", "token_ids"), list),
}
"""Columns of the store by the type of their values, NULL apart; all others are whole numbers."""
_LISTED = {"tags": str, "notes": str, "grades": int, "token_ids": int}
_NULLABLE = {
    "task", "session", "agent", "reward", "success", "line", "started_at_us", "ended_at_us", "model", "cost_usd", "latency_s", "finish_reason",
    "response_id", "provider", "streamed", "first_token_s", "token_ids", "step", "scaled", "parent_step", "continues", "error",
}  # fmt: skip
_SHORT = {"step", "trajectory", "parent_step", "continues", "grade", "trajectories", "steps", "messages", "calls"}


class Hang(BaseException):
    """Reading took more than HANG_S of work, or a minute. No Exception, so that nothing on the way takes it for bad input."""


class Reader:
    """Reads one small file after another with a connector."""

    def __init__(self, path: Path) -> None:
        self._path, self._loop = path, asyncio.new_event_loop()

    def read(self, connector: Connector, data: bytes) -> list[Item] | None:
        """What comes out; None where the file as a whole is refused. Raises what the connector raises, and Hang."""
        self._path.write_bytes(data)
        with limited():
            try:
                confidence = connector.detect(data[: 1 << 18], self._path)
                assert 0 <= confidence <= 1, f"detect says {confidence}"
                return self._loop.run_until_complete(self._items(connector))
            except SourceError as error:
                assert str(self._path) in str(error), f"a SourceError that does not name the file: {error}"
                return None

    async def _items(self, connector: Connector) -> list[Item]:
        return [item async for item in connector.read(self._path)]

    def close(self) -> None:
        self._loop.close()


def check(items: Sequence[Item]) -> None:
    """Raise AssertionError, or what goes wrong, where an item does not hold together or can't be stored."""
    for item in items:
        assert isinstance(item, Trace | Rejected), f"a {type(item).__name__} came out"
        check_item(item)
        if isinstance(item, Rejected):
            _check_rejected(item)
        else:
            TraceDraft.of(item)
            for place, row in _rows(item):
                _check_row(place, row)
            _check_json(item)


def meaning(items: Sequence[Item] | None) -> list[str]:
    """What came out, whatever the places in the file. Equal for two files that say the same."""
    found = []
    for item in items or ():
        if isinstance(item, Rejected):
            found.append(f"{item.reason} {item.raw}")
        else:
            found.append(TraceDraft.of(replace(item, source=replace(item.source, uri="", line=None))).digest)
    return sorted(found)


def _rows(trace: Trace) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of the store with values that come from the source."""
    yield "trace", {**header_row(trace), **summary_row(trace)}
    yield from (("call", call_row(call)) for call in trace.calls)
    yield from (("score", score_row(score)) for score in trace.scores)
    yield from (("sub", {**sub_row(sub)}) for sub in trace.sub_trajectories)
    for context in (trace.trajectory, *(sub.trajectory for sub in trace.sub_trajectories)):
        yield from (("step", step_row(step)) for step in context.steps)


def _check_row(table: str, row: Mapping[str, Any]) -> None:
    for name, value in row.items():
        if value is None:
            assert name in _NULLABLE, f"{table}.{name} is None"
            continue
        wanted = _TYPES.get(name, int)
        assert isinstance(value, wanted), f"{table}.{name} is a {type(value).__name__}"
        if wanted is int:
            assert value in (_SMALL if name in _SHORT else _WHOLE), f"{table}.{name} is out of range"
            assert not isinstance(value, bool), f"{table}.{name} is a bool"
        if wanted is list:
            assert all(type(each) is _LISTED[name] for each in value), f"{table}.{name} holds another type"
        if wanted is float:
            assert abs(value) < float("inf"), f"{table}.{name} is {value}"


def _check_rejected(item: Rejected) -> None:
    assert isinstance(item.uri, str)
    assert isinstance(item.reason, str)
    assert isinstance(item.raw, str)
    assert isinstance(item.line, int | None)
    assert isinstance(item.byte_offset, int)
    assert len(item.raw) <= 2000, "the whole input in a rejected row"
    assert len(item.reason) <= 20_000, "a reason as long as the input"


def _check_json(trace: Trace) -> None:
    """Stored text is JSON for everybody, without NaN and infinities."""
    row = header_row(trace)
    texts = [row["metadata"], row["details"], *(call_row(call)["params"] for call in trace.calls)]
    contexts = (trace.trajectory, *(sub.trajectory for sub in trace.sub_trajectories))
    wires = {message.wire for context in contexts for message in context.messages}
    tools = {tool.wire for context in contexts for tool in context.tools}
    for text in (*texts, *wires, *tools):
        json.loads(text, parse_constant=_constant)
    for wire in wires:
        _check_views(Message(wire))


def _check_views(message: Message) -> None:
    assert isinstance(message.signature, str)
    assert isinstance(message.reasoning, str | None), "reasoning is no text"
    assert isinstance(message.name, str | None), "a name is no text"
    assert isinstance(message.tool_call_id, str | None), "a tool call id is no text"


def _constant(text: str) -> NoReturn:
    msg = f"{text} is stored as JSON"
    raise AssertionError(msg)


@contextmanager
def limited() -> Iterator[None]:
    for number, timer, limit in _TIMERS:
        signal.signal(number, _hang)
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for _, timer, _ in _TIMERS:
            signal.setitimer(timer, 0)


def _hang(_: int, __: FrameType | None) -> NoReturn:
    raise Hang

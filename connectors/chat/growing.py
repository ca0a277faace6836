"""Rows of growing prompts, read at the speed of their news: what a row repeats of an earlier one is compared, not parsed.

A log that keeps whole prompts repeats every message once a call. The bytes of a row's message list are matched with those of prompts
seen before, what they repeat is cut out, and the short row that is left is parsed. The outcome is that of `lines.parse_line` in every
case: a row of unknown shape, damaged, or of another API than Chat Completions is given to it.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from counterplay.connectors import facts
from counterplay.connectors.chat.apis import REDACTED, SHORTENED, is_block
from counterplay.connectors.lines import MAX_PARTS, Entry, Line, Wanted, is_compact, is_document, lines, parse_line, quick_json
from counterplay.connectors.lines import entries as slow_entries
from counterplay.connectors.normalise import KnownMessages, KnownPrompt, KnownTools, is_plain, message_of, tools_of
from counterplay.connectors.prefixes import Prefixes
from counterplay.connectors.tables import is_parquet, parquet_rows
from counterplay.core.errors import SourceError
from counterplay.core.nouns import Message
from counterplay.core.records import Rejected

CALL_MARKS = ("response", "response_body", "completion", "output", "call_type")
"""Keys beside a message list that make a row a model call; without one it is a record, whose fields are looked at one by one."""

_OF_OTHERS = ("system", "anthropic_version", "input", "instructions")
_PROXY, _PROXY_MARKS = b"litellm", (REDACTED.encode(), SHORTENED.encode())
_MESSAGES, _TOOLS = b"messages " + secrets.token_hex(16).encode(), b"tools " + secrets.token_hex(16).encode()
"""What stands in a short row for what was cut out of it. No log holds them, for every process draws its own."""

_LIST = re.compile(rb"[ \t]*:[ \t]*\[")
_BETWEEN = re.compile(r"[ \t\r\n]*,?[ \t\r\n]*")
_LEAST_BYTES = 2048
_TOOLSETS = 8
_HELD_MESSAGES = 10_000
_HELD_BYTES = 64 << 20
_scanned: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # public, but in no stub


def entries(path: Path, rows: GrowingRows | None = None) -> Iterator[Entry | Rejected]:
    """As `lines.entries`; messages and tools of chat calls are `KnownMessages` and `KnownTools`, which `normalise` takes as they are."""
    if is_parquet(path):
        yield from _table(path)
        return
    if is_document(path):
        yield from slow_entries(path)
        return
    rows = rows or GrowingRows()
    for index, line in enumerate(lines(path)):
        yield line if isinstance(line, Rejected) else rows.entry(path, line, index)


def _table(path: Path) -> Iterator[Entry | Rejected]:
    """The rows of a Parquet file as a log has them: JSON in text columns is read, and what a table fills in with NULL is left out."""
    for row in parquet_rows(path):
        yield (
            row if isinstance(row, Rejected) else replace(row, value={key: _told(value) for key, value in _without_null(row.value).items()})
        )


def _told(value: Any) -> Any:
    return facts.parsed_or(value) if isinstance(value, str) and value[:1] in ("{", "[") else value


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None or key == "content"}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value


def entries_of(paths: Iterable[Path]) -> Iterator[Entry | Rejected]:
    """As `lines.entries_of`, in the manner of `entries`."""
    rows = GrowingRows()
    for path in paths:
        try:
            yield from entries(path, rows)
        except SourceError as error:
            yield Rejected(str(path), str(error))


def entries_in(paths: Iterable[Path], wanted: Wanted, *, strays: bool) -> Iterator[Entry | Rejected | None]:
    """As `entries_of`, of files of lines; None in place of a row that is not `wanted`, and of one that can't be told without `strays`.

    Raises SourceError where a file can't be read.
    """
    rows = GrowingRows()
    for path in paths:
        for index, line in enumerate(lines(path, wanted=wanted)):
            if isinstance(line, Rejected):
                yield line if strays else None
            else:
                yield rows.entry(path, line, index) if line.source else None


class ShortEntry(Entry):
    """A row whose messages are `KnownMessages`."""

    __slots__ = ()

    def reject(self, reason: str) -> Rejected:
        """As the row stood in the log."""
        return Entry(in_full(self.value), self.path, self.index, self.line, self.offset).reject(reason)


class GrowingRows:
    """Remembers prompts, messages and tools across rows, a bounded number of each."""

    def __init__(self) -> None:
        self._prompts: Prefixes[bytes, KnownPrompt] = Prefixes(b'"user"', b"}", held=_HELD_BYTES)
        self._messages: dict[bytes, Message] = {}
        self._older: dict[bytes, Message] = {}
        self._tools: list[tuple[bytes, KnownTools]] = []

    def entry(self, path: Path, line: Line, index: int) -> Entry | Rejected:
        """The row on a line."""
        if _LEAST_BYTES <= line.stop - line.start <= MAX_PARTS:
            try:
                value = self._row(line.source, line.start, line.stop)
            except (ValueError, TypeError, RecursionError):  # of the parsers too: the strict one says what is wrong, and where
                value = None
            if value is not None:
                return ShortEntry(value, path, index, line.number, line.offset)
        return parse_line(path, line, index)

    def _row(self, data: bytes, first: int, last: int) -> Any:
        """The row between two places, or None where it is none of those that can be cut short. Raises ValueError where it is damaged."""
        start = _list_at(data, b'"messages"', first, last)
        if start < 0:
            return None
        seen, count = self._prompts.longest(data, start, last)
        end = start + (seen.ends[count - 1] if seen else 1)
        short, tools = self._without_tools(b'%b["%b"%b%b' % (data[first:start], _MESSAGES, b"" if seen else b",", data[end:last]))
        row, compact = _parsed(short)
        request = _request_in(row)
        if request is None or request["messages"][0] != _MESSAGES.decode():
            return None
        if tools is not None and request.get("tools") != _TOOLS.decode():
            return None
        news = request["messages"][1:]
        found = [self._message(fields) for fields in news]
        if tools is None and isinstance(request.get("tools"), list):
            tools = self._learned(request["tools"], short)
        if tools is not None:
            request["tools"] = tools
        ends = seen.ends[:count] if seen else []
        ends += _ends_after(ends, [size for _, size in found]) if compact else _found_ends(data[end:last], end - start, len(news))
        known = seen.what.first(count) if seen else KnownPrompt()
        prompt = known.extended([message for message, _ in found])
        if seen and count == len(seen.ends):
            self._prompts.grow(seen, data, start, ends, prompt)
        else:
            self._prompts.keep(data, start, ends, prompt)
        request["messages"] = KnownMessages(prompt)
        return row

    def _without_tools(self, data: bytes) -> tuple[bytes, KnownTools | None]:
        """The row with its tools cut out too, and those; None where they are not known."""
        at = _list_at(data, b'"tools"')
        for place, (raw, tools) in enumerate(self._tools if at >= 0 else ()):
            if data.startswith(raw, at):
                if place:
                    self._tools.insert(0, self._tools.pop(place))
                return b'%b"%b"%b' % (data[:at], _TOOLS, data[at + len(raw) :]), tools
        return data, None

    def _learned(self, tools: list[Any], data: bytes) -> KnownTools | None:
        """The tools of a row, known from now on; None where others stand first in it. Raises ValueError where they are another API's."""
        if any("input_schema" in tool for tool in map(facts.record, tools)):
            msg = "tools of another API"
            raise ValueError(msg)
        text = data[_list_at(data, b'"tools"') :].decode()
        value, size = _scanned(text, 0)
        if value != tools:
            return None
        known = KnownTools(tools_of(value))
        self._tools.insert(0, (text[:size].encode(), known))
        del self._tools[_TOOLSETS:]
        return known

    def _message(self, fields: Any) -> tuple[Message, int]:
        """A message of Chat Completions, and its size in compact form. Raises ValueError on one of another API, or that a proxy changed."""
        raw = orjson.dumps(fields)
        found = self._messages.get(raw) or self._older.get(raw)
        if found is None:
            content = fields.get("content") if isinstance(fields, dict) else None
            if (_PROXY in raw and any(mark in raw for mark in _PROXY_MARKS)) or (isinstance(content, list) and any(map(is_block, content))):
                msg = "a message of another API, or not as it was sent"
                raise ValueError(msg)
            found = message_of(fields, raw.decode() if isinstance(fields, dict) and is_plain(fields) else None)
            if len(self._messages) >= _HELD_MESSAGES:
                self._messages, self._older = {}, self._messages
            self._messages[raw] = found
        return found, len(raw)


def _parsed(data: bytes) -> tuple[Any, bool]:
    """A row as strictly read as any, and whether it is in compact form. Raises ValueError where it is damaged."""
    value = orjson.loads(data)
    return (value, True) if is_compact(value, data) else (quick_json(data), False)


def _list_at(data: bytes, key: bytes, first: int = 0, last: int | None = None) -> int:
    """Where the first list under a key begins; -1 where there is none. A key can't stand in a string, where its quotes are escaped."""
    place = data.find(key, first, last)
    while place >= 0:
        found = _LIST.match(data, place + len(key))
        if found:
            return found.end() - 1
        place = data.find(key, place + 1, last)
    return -1


def _ends_after(ends: Sequence[int], sizes: Iterable[int]) -> Iterator[int]:
    """Where messages of these sizes end behind others, a comma before each."""
    end = ends[-1] if ends else 0
    for size in sizes:
        end += 1 + size
        yield end


def _found_ends(data: bytes, end: int, count: int) -> Iterator[int]:
    """The same of `count` messages with which some bytes begin, in any form, that stand behind `end`."""
    text, place = data.decode(), 0
    for _ in range(count):
        begins = _BETWEEN.match(text, place)
        _, behind = _scanned(text, begins.end() if begins else place)
        end += len(text[place:behind].encode())
        place = behind
        yield end


def _request_in(row: Any) -> dict[str, Any] | None:
    """The one object of a row that is a chat request: the row itself, or one of its values."""
    if not isinstance(row, dict):
        return None
    if isinstance(row.get("messages"), list):
        found = row if not row.keys().isdisjoint(CALL_MARKS) and "responses" not in str(row.get("call_type")) else None
    else:
        found = next((value for value in row.values() if isinstance(value, dict) and isinstance(value.get("messages"), list)), None)
    return found if found is not None and found["messages"] and found.keys().isdisjoint(_OF_OTHERS) else None


def in_full(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the messages and tools themselves in place of what stands for them, in itself or in one of its values."""
    inner = {key: {each: _in_full(found) for each, found in value.items()} for key, value in row.items() if isinstance(value, dict)}
    return {key: inner.get(key, _in_full(value)) for key, value in row.items()}


def _in_full(value: Any) -> Any:
    known = value.prompt if isinstance(value, KnownMessages) else value
    return [each.to_openai() for each in known] if isinstance(known, KnownPrompt | KnownTools) else value

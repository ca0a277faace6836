"""Chat logs: single model calls that are put back together into runs, and records that are whole runs.

Calls of Chat Completions, the Responses API and Anthropic Messages, in any mix: one row with request and answer (SDK wrappers,
proxies, LiteLLM), a row for each, the two files of a batch, stored completions; streams are reassembled. Calls of one explicit trace
or session id are one trace; calls without one are joined where one continues the other exactly or names its answer. Records are
those of counterplay's own recorder and of the usual fine-tuning sets.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from counterplay.connectors import facts
from counterplay.connectors.base import Item
from counterplay.connectors.chat import datasets
from counterplay.connectors.chat.call_tree import CallTree
from counterplay.connectors.chat.chains import Items
from counterplay.connectors.chat.growing import entries, entries_in, entries_of
from counterplay.connectors.chat.halves import Half, Halves, half_of, joined
from counterplay.connectors.chat.parting import Rows
from counterplay.connectors.chat.rows import LoggedCall, call_of, request_of, response_of
from counterplay.connectors.chat.streams import unwrapped
from counterplay.connectors.lines import Entry, is_document, is_zipped, leading_objects
from counterplay.connectors.normalise import ROLES
from counterplay.connectors.parts import Names, Part, Place, Undivided
from counterplay.connectors.tables import PARQUET, is_parquet
from counterplay.core.errors import SourceError
from counterplay.core.nouns import Trace
from counterplay.core.records import Rejected

NAME = "chatlog"
_ROWS_A_TIME = 2048
_FIRST_ROWS = 3


@dataclass(frozen=True)
class ChatLog:
    """The `chatlog` connector."""

    name: str = NAME

    def detect(self, sample: bytes, path: Path) -> float:
        found = _beginning(path) if sample.startswith(PARQUET) else leading_objects(sample)
        rows = [part for row in found for part in _parts(row)]
        known = sum(1 for row in rows if _is_known(row))
        return 0.9 * known / len(rows) if known else 0.0

    async def read(self, path: Path) -> AsyncIterator[Item]:
        """Every run of a file. Raises SourceError where the file can't be read at all."""
        for item in _items(entries(path)):
            yield item

    async def read_files(self, paths: Sequence[Path]) -> AsyncIterator[Item]:
        """Every run of several files, where a run may begin in one and go on in another."""
        for item in _items(entries_of(paths)):
            yield item

    def is_separate(self, trace: Trace) -> bool:
        """Records of whole runs are; calls may hang together with others."""
        return trace.source.dialect != "calls"

    def divides(self, paths: Sequence[Path]) -> bool:
        """Files of lines are read in parts. Not zipped ones: every part would have to unzip all, which takes longer than to read it."""
        return not any(is_zipped(path) or is_parquet(path) or is_document(path) for path in paths)

    def read_part(self, paths: Sequence[Path], part: Part) -> Iterator[Names | tuple[Place, Item]]:
        """The runs whose calls are of a part. Records that are whole runs are not read in parts: they are given out one by one."""
        log, rejected = _PartLog(), list[tuple[Place, Item]]()
        for number, row in enumerate(entries_in(paths, Rows(part), strays=part.index == 0)):
            if number % _ROWS_A_TIME == _ROWS_A_TIME - 1:
                yield log.told()
            for item in _of_row(row, log) if row is not None else ():
                if not isinstance(item, Rejected) or len(rejected) >= _ROWS_A_TIME:
                    raise Undivided
                rejected.append(((0, number), item))
        yield log.told(last=True)
        yield from rejected
        files = {path: number for number, path in enumerate(paths, 1)}
        for (path, index), item in log.placed():
            yield (files[path], index), item


class _Log:
    """What has been read and waits for more of its kind."""

    def __init__(self) -> None:
        self._tree, self._halves, self._known = CallTree(NAME), Halves(), Items()
        self._deferred: list[Entry] = []
        self._names: list[str | bytes] | None = None

    def take(self, entry: Entry) -> Iterable[Item]:
        """What an entry is by itself: a run or a Rejected; a call is kept. Raises ValueError where it can't be read."""
        half = half_of(entry.value)
        if half is not None:
            return self._half(half, entry)
        request = request_of(entry.value)
        if request is not None:
            self._call(entry, request, defer=True)
            return ()
        if datasets.kind_of(entry.value):
            return (datasets.trace_of(NAME, entry),)
        return (entry.reject(_unknown(entry.value)),)

    def finish(self) -> Iterator[Item]:
        """The traces of all calls, and the halves and calls that are in none."""
        for half in self._halves.leftover():
            yield from _caught(half, lambda entry: self._joined(entry, None))
        for entry in self._deferred:
            yield from _caught(entry, self._late)
        yield from self._tree.items()

    def _half(self, half: Half, entry: Entry) -> Iterator[Item]:
        for request, answer in self._halves.add(half, entry):
            yield from self._joined(request, answer)

    def _joined(self, request: Entry, answer: Entry | None) -> Sequence[Item]:
        call = joined(request, answer)
        if isinstance(call, Rejected):
            return (call,)
        self._add(call)
        return ()

    def _late(self, entry: Entry) -> Sequence[Item]:
        self._call(entry, request_of(entry.value) or {}, defer=False)
        return ()

    def _call(self, entry: Entry, request: Mapping[str, Any], *, defer: bool) -> None:
        response = response_of(entry.value)
        if "input" in request:
            self._known.learn(unwrapped(response)[0])
        if defer and self._known.wants(request):
            self._deferred.append(entry)
            return
        self._add(call_of(entry, self._known.resolved(request), response, [entry.value]))

    def _add(self, call: LoggedCall) -> None:
        self._tree.add(call)


class _PartLog(_Log):
    """The calls of one part of a log, and the names by which they may hang together with those of others."""

    def __init__(self) -> None:
        super().__init__()
        self._names: list[str | bytes] = []
        self._last: list[str | bytes] = []

    def told(self, *, last: bool = False) -> Names:
        names, self._names = self._names, []
        return Names(names, last)

    def placed(self) -> Iterator[tuple[tuple[Path, int], Item]]:
        return self._tree.placed()

    def _half(self, half: Half, entry: Entry) -> Iterator[Item]:  # noqa: ARG002  the shape of what it replaces
        raise Undivided

    def _call(self, entry: Entry, request: Mapping[str, Any], *, defer: bool) -> None:
        if self._known.refers(request):
            raise Undivided
        super()._call(entry, request, defer=defer)

    def _add(self, call: LoggedCall) -> None:
        names = [*self._tree.names(call)]
        self._names += (name for name in names if name not in self._last)
        self._last = names
        super()._add(call)


def _items(rows: Iterable[Entry | Rejected]) -> Iterator[Item]:
    log = _Log()
    for row in rows:
        yield from _of_row(row, log)
    yield from log.finish()


def _of_row(row: Entry | Rejected, log: _Log) -> Sequence[Item]:
    if isinstance(row, Rejected):
        return (row,)
    parts = _parts(row.value)
    if len(parts) == 1 and parts[0] is row.value:
        return _caught(row, log.take)
    return [item for part in parts for item in _caught(replace(row, value=part), log.take)]


def _caught(entry: Entry, read: Callable[[Entry], Iterable[Item]]) -> list[Item]:
    found: list[Item] = []
    try:
        found += read(entry)
    except (ValueError, RecursionError) as error:
        found.append(entry.reject(str(error)))
    return found


def _parts(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of an API's list, each for itself; the messages of one stored completion stay together."""
    data = row.get("data")
    if row.get("object") != "list" or not isinstance(data, list) or not data or half_of(row) is not None:
        return [row]
    return data if all(isinstance(part, dict) for part in data) else [row]


def _beginning(path: Path) -> list[dict[str, Any]]:
    """The first rows of a Parquet file; none where it can't be read."""
    try:
        return [row.value for row in islice(entries(path), _FIRST_ROWS) if isinstance(row, Entry)]
    except (SourceError, OSError):
        return []


def _is_known(row: Mapping[str, Any]) -> bool:
    if "trajectory_format" in row:
        return False
    try:
        return half_of(row) is not None or bool(datasets.kind_of(row)) or request_of(row) is not None or _is_begun(row)
    except RecursionError:
        return False


def _is_begun(row: Mapping[str, Any]) -> bool:
    """Whether this is a request whose instructions or tools fill the sample, so that its input is not in it."""
    request = facts.record(row.get("request"))
    return isinstance(request.get("model"), str) and ("instructions" in request or "tools" in request or "system" in request)


def _unknown(row: Mapping[str, Any]) -> str:
    messages = row.get("messages")
    if isinstance(messages, list):
        roles = sorted({str(facts.record(message).get("role")) for message in messages})
        return f"messages with the roles {', '.join(roles)[:200] or '(none)'}, wanted {', '.join(ROLES)}"
    if isinstance(row.get("call_type"), str):
        return f"a call of the type {row['call_type'][:80]}, which has no messages"
    fields = ", ".join(list(row)[:10])[:200] or "(none)"
    return f"neither a run (messages) nor a model call (request, response); its fields: {fields}"


CONNECTOR = ChatLog()

"""An OTLP export taken apart by trace id, so that each trace can be kept, built again and deleted by itself.

Nothing inside a span or log record is looked at but its ids, its end and, of log records, whether it may carry messages: the
others are none of a trace's business and are left out, as the `otlp` connector leaves them out of files. So are the spans that
counterplay's own jobs send of themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from counterplay.connectors.facts import whole_number
from counterplay.connectors.lines import parse_json
from counterplay.connectors.otlp_decode import hex_id
from counterplay.connectors.otlp_protobuf import Signal, document_of, export_of
from counterplay.core.canonical import content_key, dumps
from counterplay.spool import Encoding

OWN_SCOPE = "counterplay.jobs"
"""The instrumentation scope of what a job sends of itself: no agent's trace."""
_LONGEST_ID = 128
_REMOTE_PARENT = 0x300
_PROTOBUF_NAMES: dict[Signal, tuple[str, str, str]] = {
    "traces": ("resource_spans", "scope_spans", "spans"),
    "logs": ("resource_logs", "scope_logs", "log_records"),
}
_JSON_NAMES: dict[Signal, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "traces": (
        ("resourceSpans", "resource_spans", "batches"),
        ("scopeSpans", "scope_spans", "instrumentationLibrarySpans", "instrumentation_library_spans"),
        ("spans",),
    ),
    "logs": (
        ("resourceLogs", "resource_logs"),
        ("scopeLogs", "scope_logs", "instrumentationLibraryLogs", "instrumentation_library_logs"),
        ("logRecords", "log_records"),
    ),
}


@dataclass(slots=True)
class Part:
    """What an export holds of one trace; of spans that name none where `trace` is empty. `ended`: a root span in it has ended."""

    trace: str
    payload: bytes = b""
    count: int = 0
    ended: bool = False


def parts_of(body: bytes, signal: Signal, encoding: Encoding) -> tuple[list[Part], int]:
    """The parts of an export by trace, and how many records and spans were left out. Raises ValueError with the reason where it is none."""
    try:
        return _of_protobuf(body, signal) if encoding == "protobuf" else _of_json(body, signal)
    except RecursionError:
        msg = "nested too deeply to be read"
        raise ValueError(msg) from None


def document_in(payload: bytes, signal: Signal, encoding: Encoding) -> dict[str, Any]:
    """The OTLP/JSON document of a part."""
    if encoding == "protobuf":
        return document_of(export_of(payload, signal))
    document: dict[str, Any] = parse_json(payload)
    return document


def _of_protobuf(body: bytes, signal: Signal) -> tuple[list[Part], int]:
    export = export_of(body, signal)
    outer, inner, leaf = _PROTOBUF_NAMES[signal]
    parts: dict[str, tuple[Part, Any]] = {}
    places: dict[str, tuple[int, int]] = {}
    passed_over = 0
    for i, group in enumerate(getattr(export, outer)):
        for j, scope in enumerate(getattr(group, inner)):
            for item in getattr(scope, leaf):
                if scope.scope.name == OWN_SCOPE or (signal == "logs" and not _speaks(item.event_name, _texts(item.attributes))):
                    passed_over += 1
                    continue
                trace = _key(item.trace_id.hex())
                part, target = parts.get(trace) or parts.setdefault(trace, (Part(trace, ended=not trace), type(export)()))
                part.count += 1
                part.ended |= signal == "traces" and bool(item.end_time_unix_nano) and _is_root(item.parent_span_id.hex(), item.flags)
                groups = getattr(target, outer)
                if places.get(trace, (-1, -1))[0] != i:
                    groups.add(resource=group.resource, schema_url=group.schema_url)
                if places.get(trace) != (i, j):
                    getattr(groups[-1], inner).add(scope=scope.scope, schema_url=scope.schema_url)
                    places[trace] = (i, j)
                getattr(getattr(groups[-1], inner)[-1], leaf).append(item)
    for part, target in parts.values():
        part.payload = body if len(parts) == 1 and not passed_over else target.SerializeToString()
    return [part for part, _ in parts.values()], passed_over


def _of_json(body: bytes, signal: Signal) -> tuple[list[Part], int]:
    document = parse_json(body)
    outer = _JSON_NAMES[signal][0]
    if not isinstance(document, dict) or (document and not any(isinstance(document.get(name), list) for name in outer)):
        msg = f"no OTLP {signal}: wanted a JSON object with a list {outer[0]}"
        raise ValueError(msg)
    parts: dict[str, tuple[Part, _Document]] = {}
    passed_over = 0
    for levels, name, item in _leaves(document, signal):
        if _is_own(levels) or (signal == "logs" and isinstance(item, dict) and not _json_speaks(item)):
            passed_over += 1
            continue
        fields = item if isinstance(item, dict) else {}
        trace = _key(_field(fields, "traceId", "trace_id"))
        part, target = parts.get(trace) or parts.setdefault(trace, (Part(trace, ended=not trace), _Document()))
        part.count += 1
        part.ended |= signal == "traces" and _json_root_ended(fields)
        target.add(levels, name, item)
    for part, target in parts.values():
        part.payload = body if len(parts) == 1 and not passed_over else target.packed()
    return [part for part, _ in parts.values()], passed_over


@dataclass(frozen=True, slots=True, eq=False)
class _Level:
    """A resource or a scope: what it says beside what it holds, and the name of the list it stands in."""

    name: str
    about: dict[str, Any]


class _Document:
    """A document of some leaves of another, in their order, with each resource and scope around them once."""

    def __init__(self) -> None:
        self._root: dict[str, Any] = {}
        self._open: list[tuple[_Level, dict[str, Any]]] = []

    def add(self, levels: Sequence[_Level], name: str, item: Any) -> None:
        """Put a leaf into the list `name` of the last of `levels`."""
        shared = 0
        while shared < min(len(levels), len(self._open)) and self._open[shared][0] is levels[shared]:
            shared += 1
        del self._open[shared:]
        for level in levels[shared:]:
            made = dict(level.about)
            self._innermost.setdefault(level.name, []).append(made)
            self._open.append((level, made))
        self._innermost.setdefault(name, []).append(item)

    def packed(self) -> bytes:
        try:
            return orjson.dumps(self._root)
        except TypeError:  # a lone surrogate, or a number beyond 64 bits
            return dumps(self._root).encode()

    @property
    def _innermost(self) -> dict[str, Any]:
        return self._open[-1][1] if self._open else self._root


def _leaves(document: Mapping[str, Any], signal: Signal) -> Iterator[tuple[tuple[_Level, ...], str, Any]]:
    """Every span or log record, what it stands in and in which list. A damaged container counts as one that is damaged."""
    outer, inner, leaf = _JSON_NAMES[signal]
    for outer_name, group in _members(document, outer):
        if not isinstance(group, dict):
            yield (), outer_name, group
            continue
        resource = _Level(outer_name, _without(group, inner))
        for inner_name, scope in _members(group, inner):
            if not isinstance(scope, dict):
                yield (resource,), inner_name, scope
                continue
            around = (resource, _Level(inner_name, _without(scope, leaf)))
            for leaf_name, item in _members(scope, leaf):
                yield around, leaf_name, item


def _is_own(levels: Sequence[_Level]) -> bool:
    scope = levels[-1].about.get("scope") if levels else None
    return isinstance(scope, dict) and scope.get("name") == OWN_SCOPE


def _members(holder: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    return ((name, member) for name in names for member in _list(holder.get(name)))


def _without(fields: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def _key(raw: Any) -> str:
    """The trace id as the connector reads it; a hash in place of a text that is too long for one."""
    trace = hex_id(raw, 16)
    if len(trace) <= _LONGEST_ID:
        return trace.encode(errors="replace").decode()
    return content_key(trace.encode(errors="replace").decode())


def _is_root(parent: str, flags: int) -> bool:
    """Without a parent, or with one in another process, which may never send it here."""
    return not parent.strip("0") or flags & _REMOTE_PARENT == _REMOTE_PARENT


def _json_root_ended(span: Mapping[str, Any]) -> bool:
    end = whole_number(_field(span, "endTimeUnixNano", "end_time_unix_nano"))
    parent = hex_id(_field(span, "parentSpanId", "parent_span_id"), 8)
    return bool(end) and _is_root(parent, whole_number(span.get("flags")) or 0)


def _speaks(name: str, attributes: Mapping[str, str]) -> bool:
    """Whether a log record is an event of the GenAI conventions, under any of the places for its name."""
    return (name or attributes.get("event.name") or attributes.get("name") or "").startswith("gen_ai.")


def _texts(attributes: Any) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in attributes if pair.key in ("event.name", "name")}


def _json_speaks(record: Mapping[str, Any]) -> bool:
    raw = record.get("attributes")
    if isinstance(raw, dict):
        named = {key: value for key, value in raw.items() if isinstance(value, str)}
    else:
        pairs = [pair for pair in _list(raw) if isinstance(pair, dict) and isinstance(pair.get("key"), str)]
        named = {pair["key"]: _text(pair.get("value")) for pair in pairs}
    name = _field(record, "eventName", "event_name")
    return _speaks(name if isinstance(name, str) else "", named)


def _text(value: Any) -> str:
    found = _field(value, "stringValue", "string_value") if isinstance(value, dict) else value
    return found if isinstance(found, str) else ""


def _field(raw: Mapping[str, Any], camel: str, snake: str) -> Any:
    return raw.get(camel, raw.get(snake))


def _list(raw: Any) -> list[Any]:
    return raw if isinstance(raw, list) else [] if raw is None else [raw]

"""OTLP/JSON as producers really write it, decoded into plain spans and log records.

Accepts the official form (hex ids, numbers as strings), what `MessageToDict` users write (base64 ids, enum names, snake case),
numeric times and spans without an end. A span that can't be decoded is named by a reason, the others go on.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from counterplay.connectors.facts import count, whole_number
from counterplay.connectors.spans.span import Event, Span

_HEX = re.compile(r"[0-9a-fA-F]+")
_MAX_DEPTH = 64
_OF_LOG_RECORDS = ("timeUnixNano", "observedTimeUnixNano", "severityNumber", "severityText", "body", "attributes", "traceId", "spanId",
                   "eventName")  # fmt: skip
_ABOUT_CONTAINERS = frozenset(
    {"resource", "scope", "instrumentationLibrary", "instrumentation_library", "schemaUrl", "schema_url", "scope_spans", "scope_logs",
     "instrumentation_library_spans", "instrumentation_library_logs", "log_records"}
)  # fmt: skip


def spans_of(document: Mapping[str, Any]) -> Iterator[Span | str]:
    """Every span of an OTLP document; in place of one that can't be decoded, the reason."""
    for resource, raw in _leaves(document, ("resourceSpans", "batches"), ("scopeSpans", "instrumentationLibrarySpans"), "spans"):
        try:
            yield _span(raw, resource)
        except (ValueError, TypeError, OverflowError) as error:
            yield f"a span that can't be decoded: {error}"


def records_of(document: Mapping[str, Any]) -> Iterator[Event | str]:
    """Every log record of an OTLP document; in place of one that can't be decoded, the reason."""
    for _, raw in _leaves(document, ("resourceLogs",), ("scopeLogs", "instrumentationLibraryLogs"), "logRecords"):
        try:
            attributes, _ = _attributes(_get(_log_record(raw), "attributes"))
            name = _get(raw, "eventName") or attributes.get("event.name") or attributes.get("name") or ""
            body = _any_value(_get(raw, "body"))
            ids = hex_id(_get(raw, "traceId"), 16), hex_id(_get(raw, "spanId"), 8)
            yield Event(str(name), attributes, body, *ids, _time(_get(raw, "timeUnixNano")))
        except (ValueError, TypeError, OverflowError) as error:
            yield f"a log record that can't be decoded: {error}"


def is_otlp(document: Mapping[str, Any]) -> bool:
    """Whether a JSON object has the shape of an OTLP export of spans or logs."""
    keys = ("resourceSpans", "resourceLogs", "batches")
    return any(isinstance(_get(document, key), list) for key in keys)


def hex_id(raw: Any, size: int) -> str:
    """An id of `size` bytes as lower-case hex; other texts as they are; empty where there is none, or only zeros."""
    text = raw.encode(errors="backslashreplace").decode() if isinstance(raw, str) else ""
    if _HEX.fullmatch(text) and len(text) == 2 * size:
        return text.lower() if text.strip("0") else ""
    if len(text) == 4 * ((size + 2) // 3):
        try:
            decoded = base64.b64decode(text, validate=True)
        except binascii.Error:
            return text
        if len(decoded) == size:
            return decoded.hex() if any(decoded) else ""
    return text


def _get(raw: Mapping[str, Any], key: str) -> Any:
    """A field in lower camel case or in snake case."""
    if key in raw:
        return raw[key]
    return raw.get(_in_snake_case(key))


@lru_cache(maxsize=256)
def _in_snake_case(key: str) -> str:
    return re.sub(r"(?<!^)([A-Z])", lambda found: "_" + found[1].lower(), key)


def _leaves(
    document: Mapping[str, Any], outer: tuple[str, ...], inner: tuple[str, ...], leaf: str
) -> Iterator[tuple[Mapping[str, Any], Any]]:
    """Every leaf with its resource. A container that is damaged, or has unknown fields only, comes out as a leaf itself to be named."""
    for group in _items(document, outer):
        if not isinstance(group, dict):
            yield {}, group
            continue
        resource = _get(group, "resource")
        described = _safe_attributes(resource) if isinstance(resource, dict) else {}
        for scope in _items(group, inner) if _is_known(group, inner) else [group]:
            leaves = _items(scope, (leaf,)) if isinstance(scope, dict) and _is_known(scope, (leaf,)) else [scope]
            yield from ((described, raw) for raw in leaves)


def _is_known(container: Mapping[str, Any], inner: tuple[str, ...]) -> bool:
    """Whether a container holds what it should, or nothing at all."""
    return any(_get(container, key) is not None for key in inner) or container.keys() <= _ABOUT_CONTAINERS.union(inner)


def _items(raw: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[Any]:
    for key in keys:
        found = _get(raw, key)
        if found is not None:
            yield from found if isinstance(found, list) else [found]


def _safe_attributes(resource: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return _attributes(_get(resource, "attributes"))[0]
    except (ValueError, TypeError):
        return {}


def _log_record(raw: Any) -> Mapping[str, Any]:
    """`raw`, which may be a container that was taken for a record. Raises ValueError where it has no field of one."""
    record: Mapping[str, Any] = _wanted(raw, dict)
    if record and not any(_get(record, key) is not None for key in _OF_LOG_RECORDS):
        msg = f"got the fields {', '.join(map(repr, list(record)[:5]))}, wanted those of a log record"
        raise ValueError(msg)
    return record


def _span(raw: Any, resource: Mapping[str, Any]) -> Span:
    raw = _wanted(raw, dict)
    trace_id, span_id = hex_id(_get(raw, "traceId"), 16), hex_id(_get(raw, "spanId"), 8)
    if not trace_id or not span_id:
        key = "spanId" if trace_id else "traceId"
        msg = (
            f"its {key} is a number, wanted hex digits: numbers of 64 bits lose digits in JSON"
            if _is_number(_get(raw, key))
            else f"it has no {key}"
        )
        raise ValueError(msg)
    attributes, repeated = _attributes(_get(raw, "attributes"))
    return Span(
        trace_id,
        span_id,
        hex_id(_get(raw, "parentSpanId"), 8) or None,
        str(_get(raw, "name") or ""),
        _time(_get(raw, "startTimeUnixNano")),
        _time(_get(raw, "endTimeUnixNano")),
        attributes,
        tuple(_events(_get(raw, "events"))),
        _error(_get(raw, "status")),
        count(whole_number(_get(raw, "droppedAttributesCount"))) + repeated,
        resource,
        count(whole_number(_get(raw, "droppedEventsCount"))),
    )


def _events(raw: Any) -> Iterator[Event]:
    for event in raw if isinstance(raw, list) else ():
        if isinstance(event, dict):
            attributes, _ = _attributes(_get(event, "attributes"))
            yield Event(str(_get(event, "name") or ""), attributes, time_ns=_time(_get(event, "timeUnixNano")))


def _time(raw: Any) -> int | None:
    """Nanoseconds since 1970; None for 0, which is how an open span is written."""
    found = whole_number(raw)
    return found if found and 0 < found < 1 << 63 else None


def _error(status: Any) -> str | None:
    if not isinstance(status, dict) or _get(status, "code") not in (2, "2", "STATUS_CODE_ERROR", "ERROR"):
        return None
    return str(_get(status, "message") or "error")


def _attributes(raw: Any) -> tuple[Mapping[str, Any], int]:
    """A key/value list, or the plain object that some exporters write in its place; and how many values a repeated key took."""
    if isinstance(raw, dict):
        return {str(key): value for key, value in raw.items()}, 0
    found: dict[str, Any] = {}
    lost = 0
    for pair in _wanted(raw or [], list):
        key = _wanted(_wanted(pair, dict).get("key"), str)
        value = _any_value(pair.get("value"))
        lost += key in found and found[key] != value
        found[key] = value
    return found, lost


def _is_number(raw: Any) -> bool:
    return isinstance(raw, int | float) and not isinstance(raw, bool)


def _wanted(raw: Any, kind: type) -> Any:
    if not isinstance(raw, kind):
        msg = f"got a {type(raw).__name__}, wanted a {kind.__name__}"
        raise ValueError(msg)
    return raw


def _any_value(raw: Any, depth: int = 0) -> Any:
    if depth > _MAX_DEPTH:
        msg = f"a value is nested more than {_MAX_DEPTH} deep"
        raise ValueError(msg)
    if not isinstance(raw, dict):
        return raw
    for key in ("stringValue", "boolValue", "doubleValue", "bytesValue"):
        if (found := _get(raw, key)) is not None:
            return found
    if (found := _get(raw, "intValue")) is not None:
        number = whole_number(found)
        return found if number is None or (isinstance(found, float) and number != found) else number
    if (found := _get(raw, "arrayValue")) is not None:
        return [_any_value(item, depth + 1) for item in _values(found)]
    if (found := _get(raw, "kvlistValue")) is not None:
        pairs = [_wanted(pair, dict) for pair in _values(found)]
        values = [(str(pair.get("key")), _any_value(pair.get("value"), depth + 1)) for pair in pairs]
        fields = dict(values)
        return fields if len(fields) == len(values) else [list(value) for value in values]  # a repeated key makes it no object
    return None


def _values(raw: Any) -> list[Any]:
    """The values of an array or a key/value list, none where the field is left out, as protobuf leaves out empty ones."""
    found: list[Any] = _wanted(_wanted(raw, dict).get("values") or [], list)
    return found

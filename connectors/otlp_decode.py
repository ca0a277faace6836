"""OTLP/JSON as producers really write it, decoded into plain spans and log records.

Accepts the official form (hex ids, numbers as strings), what `MessageToDict` users write (base64 ids, enum names, snake case),
numeric times and spans without an end. A span that can't be decoded is named by a reason, the others go on.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

_HEX = re.compile(r"[0-9a-fA-F]+")
_MAX_DEPTH = 64

Loss: TypeAlias = Literal["none", "oldest", "newest", "unknown"]


@dataclass(frozen=True, slots=True)
class Event:
    """A span event, or a log record that points at a span. `body` is None where there is none."""

    name: str
    attributes: Mapping[str, Any]
    body: Any = None
    trace_id: str = ""
    span_id: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """One span. Attributes keep the order of the export, which tells what an attribute limit dropped.

    Times are None where missing, an `end_ns` of None is a span that was never closed. `error` is None unless its status says error.
    """

    trace_id: str
    span_id: str
    parent_id: str | None = None
    name: str = ""
    start_ns: int | None = None
    end_ns: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    error: str | None = None
    dropped: int = 0
    resource: Mapping[str, Any] = field(default_factory=dict)

    @property
    def loss(self) -> Loss:
        """From which end of the attributes the limit took what it took: the Python SDK drops the oldest, others the newest."""
        if not self.dropped:
            return "none"
        language = self.resource.get("telemetry.sdk.language")
        return "oldest" if language == "python" else "newest" if language in ("nodejs", "webjs", "java", "go") else "unknown"


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
            attributes = _attributes(_get(_wanted(raw, dict), "attributes"))
            name = _get(raw, "eventName") or attributes.get("event.name") or attributes.get("name") or ""
            body = _any_value(_get(raw, "body"))
            yield Event(str(name), attributes, body, hex_id(_get(raw, "traceId"), 16), hex_id(_get(raw, "spanId"), 8))
        except (ValueError, TypeError, OverflowError) as error:
            yield f"a log record that can't be decoded: {error}"


def is_otlp(document: Mapping[str, Any]) -> bool:
    """Whether a JSON object has the shape of an OTLP export of spans or logs."""
    keys = ("resourceSpans", "resourceLogs", "batches")
    return any(isinstance(_get(document, key), list) for key in keys)


def hex_id(raw: Any, size: int) -> str:
    """An id of `size` bytes as lower-case hex; other texts as they are; empty where there is none, or only zeros."""
    text = raw if isinstance(raw, str) else ""
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


def parse(text: Any) -> Any:
    """The JSON value in `text`, with infinities and NaN as strings. Raises ValueError where it is none."""
    if not isinstance(text, str):
        msg = f"got a {type(text).__name__}, wanted JSON text"
        raise ValueError(msg)
    try:
        return json.loads(text, parse_constant=str, parse_float=_finite)
    except RecursionError:
        msg = "nested too deeply"
        raise ValueError(msg) from None


def parsed_or(text: Any, default: Any = None) -> Any:
    """The JSON value in `text`; what is no text passes unchanged; `default` where it is text and not JSON."""
    if not isinstance(text, str):
        return text
    try:
        return parse(text)
    except ValueError:
        return default


def whole_number(raw: Any) -> int | None:
    """An integer from a number or its text; None where it is neither."""
    if isinstance(raw, bool) or raw is None:
        return None
    try:
        return int(raw)
    except (ValueError, TypeError, OverflowError):
        return None


def _finite(text: str) -> Any:
    number = float(text)
    return number if abs(number) != float("inf") else text


def _get(raw: Mapping[str, Any], key: str) -> Any:
    """A field in lower camel case or in snake case."""
    if key in raw:
        return raw[key]
    return raw.get(re.sub(r"(?<!^)([A-Z])", lambda found: "_" + found[1].lower(), key))


def _leaves(
    document: Mapping[str, Any], outer: tuple[str, ...], inner: tuple[str, ...], leaf: str
) -> Iterator[tuple[Mapping[str, Any], Any]]:
    """Every leaf with its resource. A container that is damaged comes out as a leaf itself, so that it is named."""
    for group in _items(document, outer):
        if not isinstance(group, dict):
            yield {}, group
            continue
        resource = _get(group, "resource")
        described = _safe_attributes(resource) if isinstance(resource, dict) else {}
        for scope in _items(group, inner):
            leaves = _items(scope, (leaf,)) if isinstance(scope, dict) else [scope]
            yield from ((described, raw) for raw in leaves)


def _items(raw: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[Any]:
    for key in keys:
        found = _get(raw, key)
        if found is not None:
            yield from found if isinstance(found, list) else [found]


def _safe_attributes(resource: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return _attributes(_get(resource, "attributes"))
    except (ValueError, TypeError):
        return {}


def _span(raw: Any, resource: Mapping[str, Any]) -> Span:
    raw = _wanted(raw, dict)
    trace_id, span_id = hex_id(_get(raw, "traceId"), 16), hex_id(_get(raw, "spanId"), 8)
    if not trace_id or not span_id:
        msg = f"it has no {'spanId' if trace_id else 'traceId'}"
        raise ValueError(msg)
    return Span(
        trace_id,
        span_id,
        hex_id(_get(raw, "parentSpanId"), 8) or None,
        str(_get(raw, "name") or ""),
        _time(_get(raw, "startTimeUnixNano")),
        _time(_get(raw, "endTimeUnixNano")),
        _attributes(_get(raw, "attributes")),
        tuple(_events(_get(raw, "events"))),
        _error(_get(raw, "status")),
        whole_number(_get(raw, "droppedAttributesCount")) or 0,
        resource,
    )


def _events(raw: Any) -> Iterator[Event]:
    for event in raw if isinstance(raw, list) else ():
        if isinstance(event, dict):
            yield Event(str(_get(event, "name") or ""), _attributes(_get(event, "attributes")))


def _time(raw: Any) -> int | None:
    """Nanoseconds since 1970; None for 0, which is how an open span is written."""
    found = whole_number(raw)
    return found if found and 0 < found < 1 << 63 else None


def _error(status: Any) -> str | None:
    if not isinstance(status, dict) or _get(status, "code") not in (2, "2", "STATUS_CODE_ERROR", "ERROR"):
        return None
    return str(_get(status, "message") or "error")


def _attributes(raw: Any) -> Mapping[str, Any]:
    """A key/value list, or the plain object that some exporters write in its place."""
    if isinstance(raw, dict):
        return {str(key): value for key, value in raw.items()}
    found: dict[str, Any] = {}
    for pair in _wanted(raw or [], list):
        key = _wanted(_wanted(pair, dict).get("key"), str)
        found[key] = _any_value(pair.get("value"))
    return found


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
        return found if number is None else number
    if isinstance(found := _get(raw, "arrayValue"), dict):
        return [_any_value(item, depth + 1) for item in _list(found.get("values"))]
    if isinstance(found := _get(raw, "kvlistValue"), dict):
        pairs = [pair for pair in _list(found.get("values")) if isinstance(pair, dict)]
        return {str(pair.get("key")): _any_value(pair.get("value"), depth + 1) for pair in pairs}
    return None


def _list(raw: Any) -> list[Any]:
    return raw if isinstance(raw, list) else []

"""OTLP/JSON traces: one document or one a line, plain or gzipped, with the GenAI conventions, OpenLLMetry or OpenInference.

The dialect is told by the content of each span. Spans of a trace may be shuffled, sent twice, or spread over the files of a
folder, and their messages may be in the log signal. One trace id becomes one `Trace`; memory holds each message once.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from counterplay.connectors import genai, openinference, traceloop
from counterplay.connectors.base import Entry, Item, entries, entries_of, leading_objects
from counterplay.connectors.otlp_build import FORMAT, build
from counterplay.connectors.otlp_decode import Event, Span, is_otlp, records_of, spans_of
from counterplay.connectors.otlp_facts import is_fact
from counterplay.connectors.otlp_spans import LengthLimit, Reading, Slot
from counterplay.core.errors import SourceError
from counterplay.core.nouns import Source, ToolSpec
from counterplay.core.records import Rejected

DIALECTS = (openinference, traceloop, genai)
"""Asked in this order; the first that claims a span reads it."""

_EVALUATION = "gen_ai.evaluation.result"
_SPANS_OR_LOGS = re.compile(rb'"(resource_?[sS]pans|resource_?[lL]ogs)"\s*:')
_PROTOBUF_MARKS = (b"telemetry.sdk", b"service.name", b"gen_ai.", b"openinference")


@dataclass(slots=True)
class _Group:
    """What is known of one trace id so far."""

    path: Path
    line: int | None
    spans: dict[str, tuple[tuple[bool, int], Span, Reading]] = field(default_factory=dict)
    records: dict[str, list[Event]] = field(default_factory=dict)
    limit: LengthLimit = field(default_factory=LengthLimit)


class _Messages:
    """Each message and each tool set once, however many prompts repeat it."""

    def __init__(self) -> None:
        self._slots: dict[tuple[Any, ...], Slot] = {}
        self._tools: dict[tuple[str, ...], tuple[ToolSpec, ...]] = {}

    def share(self, reading: Reading) -> None:
        reading.slots = {i: self._shared(slot) for i, slot in reading.slots.items()}
        reading.outputs = [self._shared(slot) for slot in reading.outputs]
        if reading.tools is not None:
            reading.tools = self._tools.setdefault(tuple(tool.wire for tool in reading.tools), reading.tools)

    def _shared(self, slot: Slot) -> Slot:
        return self._slots.setdefault((slot.message.wire, slot.whole, slot.sizes), slot)


class OtlpConnector:
    """The connector for OTLP/JSON. Protobuf files are refused with a reason."""

    name = FORMAT

    def detect(self, sample: bytes, path: Path) -> float:  # noqa: ARG002  content decides
        if any(is_otlp(found) for found in leading_objects(sample)):
            return 0.95
        if sample.lstrip()[:1] in (b"{", b"["):
            return 0.6 if _SPANS_OR_LOGS.search(sample) else 0.0
        return 0.3 if _is_protobuf(sample) else 0.0

    async def read(self, path: Path) -> AsyncIterator[Item]:
        """Every trace of a file. Log records are also looked for in a file beside it: `x_logs.json` beside `x.json`.

        Raises SourceError where the file can't be read, or is OTLP in protobuf form.
        """
        _refuse_protobuf(path)
        beside = _logs_beside(path)
        for item in _items(entries(path), entries_of([beside] if beside else [])):
            yield item

    async def read_files(self, paths: Sequence[Path]) -> AsyncIterator[Item]:
        """Every trace of several files, whose spans and log records are joined by trace id."""
        readable = []
        for path in paths:
            try:
                _refuse_protobuf(path)
                readable.append(path)
            except SourceError as error:
                yield Rejected(str(path), str(error))
        for item in _items(entries_of(readable), ()):
            yield item


CONNECTOR = OtlpConnector()


def _items(found: Iterable[Entry | Rejected], logs: Iterable[Entry | Rejected]) -> Iterator[Item]:
    groups: dict[str, _Group] = {}
    shared = _Messages()
    for entry in found:
        if isinstance(entry, Rejected):
            yield entry
        elif not is_otlp(entry.value):
            yield entry.reject("no OTLP export: it has neither resourceSpans nor resourceLogs")
        else:
            yield from _take(entry, groups, shared)
    for entry in logs:
        if isinstance(entry, Entry):
            _take_records(entry, {trace_id: group for trace_id, group in groups.items() if group.spans})
    for trace_id, group in groups.items():
        yield _finished(trace_id, group, shared)


def _take(entry: Entry, groups: dict[str, _Group], shared: _Messages) -> Iterator[Rejected]:
    for span in spans_of(entry.value):
        if isinstance(span, str):
            yield Rejected(str(entry.path), span, entry.line, entry.offset)
        else:
            _add(span, groups.setdefault(span.trace_id, _Group(entry.path, entry.line)), entry, shared)
    for reason in _take_records(entry, groups, new=True):
        yield Rejected(str(entry.path), reason, entry.line, entry.offset)


def _add(span: Span, group: _Group, entry: Entry, shared: _Messages) -> None:
    """Read a span once. Of two versions of one span the one that ended and says more is kept."""
    rank = (span.end_ns is not None, len(span.attributes))
    known = group.spans.get(span.span_id)
    if known is not None and known[0] >= rank:
        return
    if not group.spans:
        group.path, group.line = entry.path, entry.line
    for value in span.attributes.values():
        if isinstance(value, str):
            group.limit.add(value)
    reading = next((dialect.read(span) for dialect in DIALECTS if dialect.claims(span.attributes)), Reading(name=span.name))
    shared.share(reading)
    told = {key: value for key, value in span.attributes.items() if is_fact(key)}
    events = tuple(event for event in span.events if event.name == _EVALUATION)
    group.spans[span.span_id] = (rank, replace(span, attributes=told, events=events), reading)


def _take_records(entry: Entry, groups: dict[str, _Group], *, new: bool = False) -> Iterable[str]:
    """Keep the log records that carry messages or evaluations; the reasons of those that can't be read."""
    reasons = []
    for record in records_of(entry.value):
        if isinstance(record, str):
            reasons.append(record)
        elif record.name.startswith("gen_ai."):
            if not record.trace_id:
                reasons.append(f"the log record {record.name} names no trace")
            elif new or record.trace_id in groups:
                group = groups.setdefault(record.trace_id, _Group(entry.path, entry.line))
                group.records.setdefault(record.span_id, []).append(record)
    return reasons


def _finished(trace_id: str, group: _Group, shared: _Messages) -> Item:
    if not group.spans:
        count = sum(map(len, group.records.values()))
        reason = f"{count} log records of trace {trace_id}, whose spans are not here: read the folder that holds both files"
        return Rejected(str(group.path), reason, group.line)
    members = []
    for _, span, reading in group.spans.values():
        records = group.records.get(span.span_id, [])
        if reading.kind == "llm" and not reading.slots and not reading.outputs:
            genai.read_events(records, reading)
            shared.share(reading)
        opinions = tuple(record for record in records if record.name == _EVALUATION)
        members.append((replace(span, events=span.events + opinions) if opinions else span, reading))
    source = Source(FORMAT, str(group.path), group.line, _dialects(members))
    try:
        found = build(trace_id, members, group.limit, source)
    except RecursionError:
        found = f"trace {trace_id} holds values that are nested too deeply"
    return Rejected(str(group.path), found, group.line) if isinstance(found, str) else found


def _dialects(members: Iterable[tuple[Span, Reading]]) -> str:
    named: Mapping[str, None] = dict.fromkeys(reading.dialect for _, reading in members if reading.kind == "llm")
    return "+".join(sorted(named))


def _logs_beside(path: Path) -> Path | None:
    stem, dot, suffix = path.name.partition(".json")
    beside = path.with_name(f"{stem}_logs{dot}{suffix}")
    return beside if dot and beside.is_file() else None


def _is_protobuf(sample: bytes) -> bool:
    return sample[:1] == b"\n" and any(mark in sample[:65536] for mark in _PROTOBUF_MARKS) and not sample.isascii()


def _refuse_protobuf(path: Path) -> None:
    try:
        with path.open("rb") as stream:
            sample = stream.read(65536)
    except OSError:
        return  # opened again, and named, where it is read
    if _is_protobuf(sample):
        do = "Export it as JSON: the collector's file exporter with `format: json`, or an OTLP/JSON exporter."
        raise SourceError(f"got {path}, which is OTLP in protobuf form", "OTLP/JSON", do)

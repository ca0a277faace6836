"""From documents to traces: spans, and the log records and scores that belong to them, are gathered by trace id.

`traces` is the only way in. Documents may come in any order, from files or from a receiver; nothing in it looks across trace ids,
so input that is split by trace id gives the same traces. Attributes are read at once and dropped; each message is held once.
A document is an OTLP export, a span of agent-lightning, or a post of scores to Langfuse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, TypeVar

from counterplay.connectors.base import Item
from counterplay.connectors.dialects import agent_lightning, genai
from counterplay.connectors.dialects.registry import reading_of
from counterplay.connectors.dialects.run_attributes import EVALUATION, SCORE, facts_of, is_fact, is_resource_fact
from counterplay.connectors.lines import REASON_CHARS
from counterplay.connectors.otlp_decode import is_otlp, records_of, spans_of
from counterplay.connectors.otlp_scores import is_scores, scores_of
from counterplay.connectors.parts import Names, Part, Place, Undivided
from counterplay.connectors.spans.build import build
from counterplay.connectors.spans.readings import LengthLimit, Reading, Slot
from counterplay.connectors.spans.run_facts import RunFacts
from counterplay.connectors.spans.span import Event, Span
from counterplay.core.nouns import Message, Source, ToolSpec
from counterplay.core.records import Rejected

FORMAT = "otlp"
_MOST_REJECTED = 10_000
_DOCUMENTS_A_TIME = 64
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Document:
    """One document as parsed JSON, and where it stood. `line` is 1-based, None where there are no lines.

    `mixed` says that a log which is read in parts has traces of several of them in it.
    """

    value: Mapping[str, Any]
    uri: str
    line: int | None = None
    offset: int = 0
    mixed: bool = False

    def reject(self, reason: str) -> Rejected:
        return Rejected(self.uri, reason[:REASON_CHARS], self.line, self.offset)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A span that was read. The messages of its prompt are packed by place (None is a hole), which is a tenth of a dict's size."""

    rank: tuple[bool, int]
    span: Span
    reading: Reading
    packed: tuple[Slot | None, ...] | dict[int, Slot]

    @classmethod
    def of(cls, rank: tuple[bool, int], span: Span, reading: Reading) -> _Kept:
        slots, reading.slots = reading.slots, {}
        length = max(slots, default=-1) + 1
        dense = length <= 2 * len(slots) + 8
        return cls(rank, span, reading, tuple(map(slots.get, range(length))) if dense else slots)

    def unpacked(self) -> tuple[Span, Reading]:
        packed = self.packed
        known = packed if isinstance(packed, dict) else {i: slot for i, slot in enumerate(packed) if slot is not None}
        self.reading.slots = known
        return self.span, self.reading


@dataclass(slots=True)
class _Group:
    """What is known of one trace id so far. `first` is where in its document it begins: among the spans, or among the records behind."""

    place: Document
    first: Place
    spans: dict[str, _Kept] = field(default_factory=dict)
    records: dict[str, list[Event]] = field(default_factory=dict)
    limit: LengthLimit = field(default_factory=LengthLimit)


class _Shared:
    """Each message, each tool set and each other value once, however many spans and log records repeat it."""

    def __init__(self) -> None:
        self._values: dict[int, Any] = {}
        self._slots: dict[tuple[Any, ...], Slot] = {}
        self._last: dict[int, tuple[Slot, Slot]] = {}  # those of the last prompt: the next one may be made of the same objects
        self._tools: dict[tuple[str, ...], tuple[ToolSpec, ...]] = {}

    def share(self, reading: Reading) -> None:
        met, last = {}, self._last
        for i, slot in reading.slots.items():
            pair = last.get(id(slot))
            if pair is None or pair[0] is not slot:
                pair = (slot, self._shared(slot))
            met[id(slot)] = pair
            reading.slots[i] = pair[1]
        self._last = met
        reading.outputs = [self._shared(slot) for slot in reading.outputs]
        reading.params = self._same(reading.params)
        if reading.tools is not None:
            reading.tools = self._tools.setdefault(tuple(tool.wire for tool in reading.tools), reading.tools)

    def told(self, attributes: Mapping[str, Any], wanted: Callable[[str], bool]) -> Mapping[str, Any]:
        """What is wanted of some attributes."""
        return self._same({key: value for key, value in attributes.items() if wanted(key)})

    def record(self, record: Event) -> Event:
        return replace(record, attributes=self._same(record.attributes), body=self._same(record.body))

    def _same(self, found: T) -> T:
        known: T = self._values.setdefault(hash(repr(found)), found)
        return known if known == found else found

    def _shared(self, slot: Slot) -> Slot:
        key = (slot.message.wire, slot.whole, slot.sizes)
        found = self._slots.get(key)
        if found is None:  # as new, without what was worked out of it while it was read
            found = self._slots[key] = Slot(Message(slot.message.wire), slot.whole, slot.sizes)
        return found


def is_document(value: Mapping[str, Any]) -> bool:
    """Whether a JSON object is one of the documents that belong here."""
    return is_otlp(value) or agent_lightning.is_row(value) or is_scores(value)


def traces(documents: Iterable[Document | Rejected], beside: Iterable[Document | Rejected] = ()) -> Iterator[Item]:
    """Every trace of these documents, and a Rejected for what is none. Of those `beside` only what belongs to these traces is taken."""
    groups: dict[str, _Group] = {}
    shared = _Shared()
    for document in documents:
        yield from _take(document, groups, shared)
    _take_beside(beside, groups, shared)
    del shared  # from here on what a trace holds goes with it
    for trace_id in list(groups):
        yield from _finished(trace_id, groups.pop(trace_id))


def traces_in(
    part: Part, documents: Iterable[Document | Rejected | None], beside: Iterable[Document | Rejected]
) -> Iterator[Names | tuple[Place, Item]]:
    """As `traces`, of one part (see `parts.PartConnector`); a document that is None is another's."""
    groups: dict[str, _Group] = {}
    shared = _Shared()
    begun: dict[str, Place] = {}
    rejected: list[tuple[Place, Item]] = []
    names: list[str] = []
    for number, document in enumerate(documents):
        if number % _DOCUMENTS_A_TIME == _DOCUMENTS_A_TIME - 1:
            yield Names(names)
            names = []
        if document is None:
            continue
        rejected += (((0, number), item) for item in _take(document, groups, shared, part))
        if len(rejected) > _MOST_REJECTED:
            raise Undivided
        new = [*islice(reversed(groups), len(groups) - len(begun))][::-1]
        begun.update((key, (1, number, *groups[key].first)) for key in new)
        names += new
    yield Names(names, last=True)
    yield from rejected
    _take_beside(beside, groups, shared)
    del shared
    for trace_id in list(groups):
        yield from ((begun[trace_id], item) for item in _finished(trace_id, groups.pop(trace_id)))


def _take_beside(documents: Iterable[Document | Rejected], groups: dict[str, _Group], shared: _Shared) -> None:
    for document in documents:
        if isinstance(document, Document):
            _take_records(document, {trace_id: group for trace_id, group in groups.items() if group.spans}, shared)


def _take(document: Document | Rejected, groups: dict[str, _Group], shared: _Shared, part: Part | None = None) -> Iterator[Rejected]:
    """Keep what a document holds. Of a mixed one only what is the `part`'s own; what has no trace, and so no part, is the first's."""
    if isinstance(document, Rejected):
        yield document
        return
    if not is_document(document.value):
        yield document.reject("no OTLP export: it has neither resourceSpans nor resourceLogs")
        return
    part = part if document.mixed else None
    for rejected in _taken(document, groups, shared, part):
        if part is None or part.index == 0:
            yield rejected


def _taken(document: Document, groups: dict[str, _Group], shared: _Shared, part: Part | None) -> Iterator[Rejected]:
    place = replace(document, value={})
    for number, span in enumerate(_spans(document.value)):
        if isinstance(span, str):
            yield place.reject(span)
        elif part is None or part.takes(span.trace_id.encode()):
            key = agent_lightning.attempt_of(span) or span.trace_id
            try:
                _add(span, groups.setdefault(key, _Group(place, (0, number))), place, shared)
            except RecursionError:
                yield place.reject(f"the span {span.span_id} holds values that are nested too deeply")
    for reason in _take_records(document, groups, shared, part, new=True):
        yield place.reject(reason)


def _spans(document: Mapping[str, Any]) -> Iterator[Span | str]:
    if not agent_lightning.is_row(document):
        yield from spans_of(document)
        return
    try:
        yield agent_lightning.span_of(document)
    except ValueError as error:
        yield f"a span that can't be decoded: {error}"


def _add(span: Span, group: _Group, place: Document, shared: _Shared) -> None:
    """Read a span once. Of two versions of one span the one that ended and says more is kept."""
    rank = (span.end_ns is not None, len(span.attributes))
    known = group.spans.get(span.span_id)
    if known is not None and known.rank >= rank:
        return
    if not group.spans:
        group.place = place
    for value in span.attributes.values():
        if isinstance(value, str):
            group.limit.add(value)
    reading = reading_of(span)
    shared.share(reading)
    told, resource = shared.told(span.attributes, is_fact), shared.told(span.resource, is_resource_fact)
    events = tuple(event for event in span.events if event.name == EVALUATION)
    kept = replace(span, attributes=told, events=events, resource=resource)
    group.spans[span.span_id] = _Kept.of(rank, kept, reading)


def _take_records(
    document: Document, groups: dict[str, _Group], shared: _Shared, part: Part | None = None, *, new: bool = False
) -> Iterable[str]:
    """Keep the records that carry messages, evaluations or scores; the reasons of those that can't be read."""
    reasons = []
    place = replace(document, value={})
    scores = scores_of(document.value) if is_scores(document.value) else ()
    for number, record in enumerate(chain(records_of(document.value), scores)):
        if isinstance(record, str):
            reasons.append(record)
        elif record.name.startswith("gen_ai.") or record.name == SCORE:
            if not record.trace_id:
                reasons.append(f"the log record {record.name} names no trace")
            elif part is not None and not part.takes(record.trace_id.encode()):
                continue
            elif new or record.trace_id in groups:
                group = groups.setdefault(record.trace_id, _Group(place, (1, number)))
                group.records.setdefault(record.span_id, []).append(shared.record(record))
    return reasons


def _finished(trace_id: str, group: _Group) -> Iterator[Item]:
    if group.spans or group.records:
        yield _trace(trace_id, group)


def _trace(trace_id: str, group: _Group) -> Item:
    if not group.spans:
        return group.place.reject(_without_spans(trace_id, group))
    members = [kept.unpacked() for kept in group.spans.values()]
    for span, reading in members:
        if reading.kind == "llm" and not reading.slots and not reading.outputs:
            genai.read_events(group.records.get(span.span_id, ()), reading)
    source = Source(FORMAT, group.place.uri, group.place.line, _dialects(members))
    try:
        found = build(trace_id, members, source, _facts(members, group), group.limit)
    except RecursionError:
        found = f"trace {trace_id} holds values that are nested too deeply"
    return group.place.reject(found) if isinstance(found, str) else found


def _without_spans(trace_id: str, group: _Group) -> str:
    records = [record for found in group.records.values() for record in found]
    kind = "scores" if all(record.name == SCORE for record in records) else "log records"
    return f"{len(records)} {kind} of trace {trace_id}, whose spans are not here: read the folder that holds both files"


def _facts(members: Sequence[tuple[Span, Reading]], group: _Group) -> RunFacts:
    """What the spans and the opinions beside them say of the run; log records that belong to no span of it are counted."""
    records = [record for found in group.records.values() for record in found]
    opinions = [record for record in records if record.name in (EVALUATION, SCORE)]
    astray = sum(record.span_id not in group.spans for record in records) - sum(each.span_id not in group.spans for each in opinions)
    facts = facts_of(members, _once(opinions))
    return replace(facts, notes=(f"{astray} log records name a span that is not in the trace",)) if astray else facts


def _once(opinions: Iterable[Event]) -> list[Event]:
    """Without those that an exporter sent twice."""
    found = {(each.time_ns, each.span_id, each.name, repr(each.attributes)): each for each in opinions}
    return list(found.values())


def _dialects(members: Iterable[tuple[Span, Reading]]) -> str:
    named: Mapping[str, None] = dict.fromkeys(reading.dialect for _, reading in members if reading.kind == "llm")
    return "+".join(sorted(named))

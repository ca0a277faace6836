"""Braintrust: project logs and experiments as rows, one a span, in JSON, JSON lines, CSV or Parquet; pages of its API too.

Later rows with the same id go over earlier ones: a row that says `_is_merge` adds to what is known, any other replaces it. One
root span is one `Trace`. Prompts and answers stand in `input` and `output`, tools and parameters in `metadata`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterplay.connectors import facts
from counterplay.connectors.base import Item
from counterplay.connectors.braintrust_spans import SCORED_BY, facts_of, members_of
from counterplay.connectors.intake import TOO_DEEP, Place, Record, Shared, pulled, records_of
from counterplay.connectors.lines import leading_objects
from counterplay.connectors.spans.gather import Members, built
from counterplay.connectors.spans.run_facts import RunFacts, roots_of
from counterplay.connectors.tables import columns_of, rows_of, rows_of_all
from counterplay.core.nouns import Source
from counterplay.core.records import Rejected

NAME = "braintrust"
_JSON_FIELDS = (
    "input", "output", "expected", "error", "scores", "metadata", "tags", "metrics", "context", "span_parents", "span_attributes",
    "comments",
)  # fmt: skip
_KEPT_WHEN_MERGED = ("created", "span_id", "root_span_id", "span_parents")
_PAGES = ("events", "rows", "data")
_FIELDS = {"span_attributes", "span_parents", "metrics", "scores", "input", "output", "metadata", "_xact_id", "is_root"}


@dataclass(frozen=True)
class Braintrust:
    """The `braintrust` connector."""

    name: str = NAME

    def detect(self, sample: bytes, path: Path) -> float:
        if columns_of(sample, path) >= {"id", "span_id", "root_span_id"}:
            return 0.9
        rows = [row for found in leading_objects(sample, 5) for row in _rows(found)]
        known = sum(1 for row in rows if _is_ours(row))
        return 0.95 * known / len(rows) if known else 0.0

    async def read(self, path: Path) -> AsyncIterator[Item]:
        """Every trace of a file. Raises SourceError where it can't be read."""
        for item in _items(records_of(rows_of(path))):
            yield item

    async def read_files(self, paths: Sequence[Path]) -> AsyncIterator[Item]:
        """Every trace of several files, whose rows are merged by their ids."""
        for item in _items(records_of(rows_of_all(paths))):
            yield item


CONNECTOR = Braintrust()


def traces_of(rows: Iterable[Mapping[str, Any]], uri: str) -> Iterator[Item]:
    """The traces of rows as the API gives them; `uri` is where they came from."""
    return _items(pulled(rows, uri))


@dataclass(slots=True)
class _Trace:
    """Rows of one root span by their own ids."""

    place: Place
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Known:
    """All rows by id, and comments by the id of the row that they are on."""

    rows: dict[str, tuple[dict[str, Any], Place]]
    comments: dict[str, list[tuple[Mapping[str, Any], Place]]]


def _items(records: Iterable[Record | Rejected]) -> Iterator[Item]:
    known = _Known({}, {})
    shared = Shared()
    for found in records:
        if isinstance(found, Rejected):
            yield found
            continue
        value, place = found
        for row in _rows(value):
            try:
                reason = _take(row, place, known, shared)
            except RecursionError:
                reason = TOO_DEEP
            if reason:
                yield place.reject(reason, row)
    yield from _finished(known)


def _finished(known: _Known) -> Iterator[Item]:
    traces: dict[str, _Trace] = {}
    for own, (row, place) in known.rows.items():
        root = facts.word(row.get("root_span_id"))
        if root is None:
            yield place.reject(f"an update of row {own}, which is not here", row)
        elif not row.get("_object_delete"):
            said = [comment for comment, _ in known.comments.get(own, ())]
            traces.setdefault(root, _Trace(place)).rows[own] = {**row, "comments": [*_list(row.get("comments")), *said]} if said else row
    for own, comments in known.comments.items():
        if own not in known.rows:
            for comment, place in comments:
                yield place.reject(f"a comment on row {own}, which is not here", comment)
    for root, trace in traces.items():
        yield _trace(root, trace)


def _take(row: Any, place: Place, all_known: _Known, shared: Shared) -> str:
    """Merge a row with what is known of its id; the reason where it is none."""
    if not isinstance(row, dict):
        return "a Braintrust row that is no object"
    own = facts.word(row.get("id"))
    merges = row.get("_is_merge") is True
    if own is None or not (merges or row.keys() & {*_FIELDS, "comment"}):
        return "no Braintrust row: it has no id, or neither span nor merge fields"
    about, rows = facts.word(facts.record(row.get("origin")).get("id")), all_known.rows
    if about is not None and "comment" in row and "span_id" not in row:
        all_known.comments.setdefault(about, []).append((row, place))
        return ""
    plain = {key: _plain(value) if key in _JSON_FIELDS else value for key, value in row.items()}
    if not isinstance(plain.get("span_attributes"), dict | None):
        return "a Braintrust row whose span_attributes, which say what it is, are no object"
    if isinstance(plain.get("scores"), dict) and row.get("_audit_source"):
        plain[SCORED_BY] = dict.fromkeys(plain["scores"], row["_audit_source"])
    known = rows.get(own)
    if known is None:
        rows[own] = (shared.once(plain), place)
    elif merges or known[0].get("_is_merge") is True:
        over, under = (plain, known[0]) if merges else (known[0], plain)  # an update may come before what it updates
        kept = {key: under[key] for key in _KEPT_WHEN_MERGED if key in under}
        whole = {**_merged(under, over), **kept, "_is_merge": merges and known[0].get("_is_merge") is True}
        rows[own] = (shared.once(whole), known[1])
    elif _version(plain) >= _version(known[0]):
        rows[own] = (shared.once(plain), known[1])
    return ""


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Objects merged field by field, anything else replaced."""
    whole = dict(one)
    for key, value in other.items():
        before = whole.get(key)
        whole[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return whole


def _trace(root: str, trace: _Trace) -> Item:
    def read() -> tuple[Members, RunFacts]:
        rows = list(trace.rows.values())
        members = members_of(root, rows)
        return members, facts_of(root, rows, roots_of(members))

    return built(Source(NAME, trace.place.uri, trace.place.line), root, trace.place, read)


def _rows(value: Mapping[str, Any]) -> list[Any]:
    """A record's rows: itself, or those of a page of the API."""
    if "id" in value and ("span_id" in value or "_is_merge" in value):
        return [value]
    page = next((value[key] for key in _PAGES if isinstance(value.get(key), list)), None)
    return page if page is not None else [value]


def _is_ours(row: Any) -> bool:
    return isinstance(row, dict) and row.keys() >= {"id", "span_id", "root_span_id"} and bool(row.keys() & _FIELDS)


def _plain(value: Any) -> Any:
    """Tables keep nested fields as JSON text."""
    return facts.parsed_or(value, value) if isinstance(value, str) and value[:1] in ("{", "[", '"') else value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _version(row: Mapping[str, Any]) -> tuple[int, str]:
    """Transaction ids grow with time."""
    text = str(row.get("_xact_id") or "")
    return len(text), text

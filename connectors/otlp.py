"""OTLP traces: JSON, JSON lines and protobuf, plain or gzipped, with any convention that `dialects` knows.

The dialect is told by the content of each span; packages add their own as entry points of the group `counterplay.dialects` (see
`dialects.registry`). Spans of a trace may be shuffled, sent twice, or spread over the files of a folder, and their messages may be
in the log signal. One trace id becomes one `Trace`; memory holds each message once. Agent-lightning's spans as JSON rows and the
scores that Langfuse's SDK posts beside its spans are read as well.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from counterplay.connectors.base import Item, entries, leading_objects, open_bytes
from counterplay.connectors.lines import MAX_RECORD_BYTES, Line, is_zipped, lines, parse_line, sample_of
from counterplay.connectors.lines import is_document as is_one_document
from counterplay.connectors.otlp_decode import hex_id
from counterplay.connectors.otlp_traces import FORMAT, Document, is_document, traces, traces_in
from counterplay.connectors.parts import Names, Part, Place
from counterplay.core.errors import SourceError
from counterplay.core.records import Rejected

_SPANS_OR_LOGS = re.compile(rb'"(resource_?[sS]pans|resource_?[lL]ogs)"\s*:')

_TRACE_ID = re.compile(rb'"trace(?:Id|_id)"\s*:\s*"([^"]*)"')

_PROTOBUF_STARTS = (b"\n", b"\0")
"""The tag of an export's first field, or the length before each export in a collector's file."""


class OtlpConnector:
    """The connector for OTLP in every encoding."""

    name = FORMAT

    def detect(self, sample: bytes, path: Path) -> float:  # noqa: ARG002  content decides
        if any(is_document(found) for found in leading_objects(sample)):
            return 0.95
        if sample.lstrip()[:1] in (b"{", b"["):
            return 0.6 if _SPANS_OR_LOGS.search(sample) else 0.0
        return 0.9 if _is_protobuf(sample) else 0.0

    async def read(self, path: Path) -> AsyncIterator[Item]:
        """Every trace of a file. Log records and scores are also looked for in a file beside it.

        That is `x_logs.json` beside `x.json`, and `x_ingestion.jsonl` beside `x_otlp.jsonl`. Raises SourceError where the file can't
        be read.
        """
        for item in traces(_documents(path), _documents_of(_beside([path]))):
            yield item

    async def read_files(self, paths: Sequence[Path]) -> AsyncIterator[Item]:
        """Every trace of several files, whose spans, log records and scores are joined by trace id; see also `read`."""
        for item in traces(_documents_of(paths), _documents_of(_beside(paths))):
            yield item

    def divides(self, paths: Sequence[Path]) -> bool:
        """JSON lines are read in parts. Not zipped ones: every part would have to unzip all, which takes longer than to read it."""
        return not any(is_zipped(path) or is_one_document(path) or _is_protobuf(sample_of(path)) for path in paths)

    def read_part(self, paths: Sequence[Path], part: Part) -> Iterator[Names | tuple[Place, Item]]:
        """The traces whose ids are of a part."""
        return traces_in(part, _documents_in(paths, part), _documents_of(_beside(paths)))


CONNECTOR = OtlpConnector()


def traces_of(documents: Iterable[Mapping[str, Any]], uri: str) -> Iterator[Item]:
    """The traces of documents in OTLP/JSON shape, spans and log records mixed, as a receiver has them.

    `uri` is where they came from. Places in rejected rows count the documents from 1 as lines.
    """
    return traces(Document(value, uri, number) for number, value in enumerate(documents, 1))


def _documents_of(paths: Iterable[Path]) -> Iterator[Document | Rejected]:
    """The documents of several files in order; a file that can't be read at all is one Rejected."""
    for path in paths:
        try:
            yield from _documents(path)
        except SourceError as error:
            yield Rejected(str(path), str(error))


def _documents(path: Path) -> Iterator[Document | Rejected]:
    if _is_protobuf(sample_of(path)):
        yield from _protobuf_documents(path)
        return
    for entry in entries(path):
        yield entry if isinstance(entry, Rejected) else Document(entry.value, str(path), entry.line, entry.offset)


def _documents_in(paths: Iterable[Path], part: Part) -> Iterator[Document | Rejected | None]:
    """The documents that are of a part, or of several; None in place of the others."""

    def wanted(source: bytes, start: int, end: int) -> bool:
        found = _traces_at_ends(source, start, end)
        return len(found) > 1 or all(map(part.takes, found))

    for path in paths:
        for line in lines(path, wanted=wanted):
            if isinstance(line, Rejected):
                yield line if part.index == 0 else None
            elif not line.source:
                yield None
            else:
                yield _document_in(path, line)


def _document_in(path: Path, line: Line) -> Document | Rejected:
    entry = parse_line(path, line)
    if isinstance(entry, Rejected):
        return entry
    return Document(entry.value, str(path), entry.line, entry.offset, mixed=len(_traces_at_ends(line.source, line.start, line.stop)) > 1)


def _traces_at_ends(source: bytes, start: int, end: int) -> set[bytes]:
    """The first and the last trace id of a line: one where all its spans are of one trace, or so it seems."""
    last = max(source.rfind(key, start, end) for key in (b'"traceId"', b'"trace_id"'))
    found = _TRACE_ID.search(source, start, end), _TRACE_ID.search(source, max(last, start), end)
    return {hex_id(each[1].decode(errors="replace"), 16).encode() if each else b"" for each in found}


def _protobuf_documents(path: Path) -> Iterator[Document | Rejected]:
    """A damaged file gives what stands before the damage, and a Rejected."""
    from counterplay.connectors.otlp_protobuf import documents_of

    with open_bytes(path) as stream:
        try:
            data = stream.read(MAX_RECORD_BYTES + 1)
        except (EOFError, OSError) as error:
            yield Rejected(str(path), f"the file is cut short or damaged ({error})")
            return
    if len(data) > MAX_RECORD_BYTES:
        yield Rejected(str(path), f"protobuf of more than {MAX_RECORD_BYTES} bytes, wanted several smaller files")
        return
    try:
        for value in documents_of(data):
            yield Document(value, str(path))
    except ValueError as error:
        yield Rejected(str(path), f"OTLP in protobuf form that can't be decoded: {error}")


def _is_protobuf(sample: bytes) -> bool:
    if sample[:1] not in _PROTOBUF_STARTS or sample.isascii():
        return False
    from counterplay.connectors.otlp_protobuf import is_protobuf

    return is_protobuf(sample)


def _beside(paths: Sequence[Path]) -> list[Path]:
    """Files that hold what belongs to the spans of these, and are not among them."""
    found: dict[Path, None] = {}
    for path in paths:
        stem, dot, suffix = path.name.partition(".json")
        names = [f"{stem}_logs{dot}{suffix}", *([f"{stem.removesuffix('_otlp')}_ingestion{dot}{suffix}"] if stem.endswith("_otlp") else [])]
        found |= {path.with_name(name): None for name in names if dot and path.with_name(name).is_file()}
    return [path for path in found if path not in set(paths)]

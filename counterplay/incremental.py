"""Folders and prefixes that are read again and again: what has not changed is not read, what was read is marked with what it gave.

The mark of a file is stored in one transaction with the last of its traces, so that a kill at any time costs reading, never a trace.
Files that one connector joins are read together again where one of them changed, unless each of their traces was one record: then only
what is new is read, of a local file that has grown only what was added.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from counterplay.connectors.base import FolderConnector, Item, Separate, Unit, files_in, get, sorted_out
from counterplay.connectors.lines import is_document, is_zipped
from counterplay.connectors.tables import is_parquet
from counterplay.core.canonical import content_key
from counterplay.core.errors import SourceError, UserError
from counterplay.core.nouns import Trace
from counterplay.core.records import Rejected
from counterplay.object_paths import GONE, UNREAD, Remote, StreamPath, Tail, in_order
from counterplay.objects import Entry, Location, entries, entry_of, is_uri, location_of

if TYPE_CHECKING:
    from counterplay.core.store import Store

Together: TypeAlias = Literal["all", "partition", "file"]

_MARK = "read "
_PARTITION = re.compile(r"[^=]+=.*|\d{4}-\d{2}-\d{2}(T\d{2})?|\d{4}|\d{2}")
_CHUNK_BYTES = 64 << 20
_CHUNK_UNITS = 512
_MANY_FOLDERS = 64
_LOCAL_TICK_NS = 50_000_000
_OBJECT_TICK_US = 2_000_000
_TAIL_BYTES = 4096
_SCAN_BYTES = 1 << 20
_FEW = 100


@dataclass(frozen=True, slots=True)
class File:
    """A file or object as it was listed. `stamp` differs where the content does, and is empty where that can't be told from the clock.

    `identity` tells a local file from another of its name; empty for objects, which are only ever replaced.
    """

    path: Path
    uri: str
    size: int
    stamp: str
    identity: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """What is remembered of a file that was read: by which connector, and `how` it was asked for.

    `separate`: each of its traces was one record. The first `lines` lines are whole and end at byte `end`; `tail` is a digest of the
    bytes before that. `end` is 0 where it can't be read on.
    """

    stamp: str
    how: str
    format: str
    separate: bool = False
    identity: str = ""
    size: int = 0
    end: int = 0
    lines: int = 0
    tail: str = ""


@dataclass
class Part:
    """A unit of reading: `files` are those of it that are new or changed, `starts` the marks, by path,
    of those that are read on from their end.
    """

    unit: Unit
    files: list[File]
    starts: dict[str, Mark] = field(default_factory=dict)
    separate: bool = True
    unread: list[str] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


@dataclass
class Chunk:
    """Parts that are stored together. `marks` are right once all `items` have been taken."""

    how: str
    parts: list[Part] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    passed: list[File] = field(default_factory=list)
    unchanged: int = 0
    marks: dict[str, str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)

    @property
    def units(self) -> list[Unit]:
        return [part.unit for part in self.parts]

    @property
    def is_full(self) -> bool:
        return len(self.parts) >= _CHUNK_UNITS or sum(file.size for part in self.parts for file in part.files) >= _CHUNK_BYTES

    def items(self, found: Iterable[Item]) -> Iterator[Item]:
        """What was found, by line and offset of the whole file. What the network kept back is told in `unread`, not given out."""
        of = {str(path): part for part in self.parts for path in part.unit.files}
        for item in found:
            uri = item.source.uri if isinstance(item, Trace) else item.uri
            parts = [of[uri]] if uri in of else self.parts
            if isinstance(item, Trace):
                for part in parts:
                    part.separate = part.separate and _is_separate(part.unit.connector, item)
                yield _moved_trace(item, parts[0].starts.get(uri)) if parts else item
            elif UNREAD in item.reason:
                for part in parts:
                    part.unread.append(item.reason)
                self.unread += [] if parts else [item.reason]
            elif GONE not in item.reason:
                moved = _moved_row(item, parts[0].starts.get(uri)) if parts else item
                for part in parts:
                    part.rejected.append(moved)
                yield moved
        self._mark()

    def _mark(self) -> None:
        marks: dict[str, Mark] = {}
        unread = {row.uri for row in self.rejected if UNREAD in row.reason}
        for part in self.parts:
            self.unread += part.unread
            marks |= {file.uri: Mark("", self.how, "") for file in part.files} if part.unread else _marks_of(part, self.how)
        marks |= {file.uri: Mark(file.stamp, self.how, "") for file in self.passed if str(file.path) not in unread}
        self.marks |= {_name(uri): json.dumps(asdict(mark)) for uri, mark in marks.items()}


@dataclass(frozen=True)
class Tree:
    """A folder or a prefix, and how it is read. `how` names everything beside the content that decides what is stored.

    `together` says which files may hold parts of one trace: all, those of one partition folder (`date=2026-01-31`, `2026/01/31`), or none.
    `again` reads everything, changed or not.
    """

    root: Path | Location
    format: str = "auto"
    together: Together = "all"
    again: bool = False
    how: str = ""

    def chunks(self, store: Store) -> Iterator[Chunk]:
        """What there is to read, in order. Raises SourceError where there is nothing at all, or it can't be listed."""
        chunk = Chunk(self.how)
        for files in self._groups():
            marks = {} if self.again else _held(store, files, self.how)
            todo = [file for file in files if not file.stamp or marks.get(file.uri, _NEVER).stamp != file.stamp]
            chunk.unchanged += len(files) - len(todo)
            for part in self._parts(files, _in_order(todo), marks, chunk) if todo else ():
                chunk.parts.append(part)
                if chunk.is_full:
                    yield chunk
                    chunk = Chunk(self.how)
        yield chunk

    def _groups(self) -> Iterator[list[File]]:
        if isinstance(self.root, Location):
            alone = entry_of(self.root)
            found = iter([[alone]]) if alone else _walked(self.root, by_partition=self.together == "partition")
            yield from map(_objects, found)
        elif self.root.is_dir():
            files = [file for path in files_in(self.root) if (file := _local(path))]
            yield from _partitions(self.root, files) if self.together == "partition" else [files]
        else:
            yield [file for file in [_local(self.root)] if file]

    def _parts(self, files: Sequence[File], todo: list[File], marks: Mapping[str, Mark], chunk: Chunk) -> Iterator[Part]:
        """The units that hold what is to be read. What no connector reads is left in the chunk."""
        grown = {str(file.path): mark for file in todo if (mark := marks.get(file.uri)) and _has_grown(file, mark)}
        by_path = {str(file.path): file for file in todo}
        formats, bad = sorted_out([file.path for file in todo if str(file.path) not in grown], self.format)
        if bad and isinstance(self.root, Location) and [str(row.uri) for row in bad] == [self.root.uri]:
            raise SourceError(bad[0].reason)
        chunk.rejected += [row for row in bad if GONE not in row.reason and UNREAD not in row.reason]
        chunk.unread += [row.reason for row in bad if UNREAD in row.reason]
        read = {str(path) for paths in formats.values() for path in paths}
        lost = {row.uri for row in bad if GONE in row.reason or UNREAD in row.reason}
        chunk.passed += [file for file in todo if str(file.path) not in {*read, *lost, *grown}]
        new: dict[str, list[File]] = defaultdict(list)
        for name, paths in formats.items():
            new[name] += [by_path[str(path)] for path in paths]
        for path, mark in grown.items():
            new[mark.format].append(by_path[path])
        for name, news in new.items():
            for part in self._joined(name, news, files, marks, {path: mark for path, mark in grown.items() if mark.format == name}):
                chunk.unchanged -= len(part.unit.files) - len(part.files)
                yield part

    def _joined(
        self, name: str, news: list[File], files: Sequence[File], marks: Mapping[str, Mark], starts: dict[str, Mark]
    ) -> Iterator[Part]:
        if self.together == "file" or not isinstance(get(name), FolderConnector):
            yield from (Part(Unit(name, (_path(file, starts),)), [file], _only(file, starts)) for file in news)
            return
        fresh = {file.uri for file in news}
        others = {file.uri for file in files if file.uri not in fresh and _hangs_together(marks.get(file.uri), name)}
        if others:
            starts = {}
        chosen = _in_order([file for file in files if file.uri in fresh | others])
        yield Part(Unit(name, tuple(_path(file, starts) for file in chosen)), news, starts)


_NEVER = Mark("", "", "")


def trees_of(names: Iterable[str], *, files: bool) -> tuple[list[Path | Location], list[str]]:
    """The prefixes and folders (and, where asked for, the `files`) among some names, and the others."""
    trees: list[Path | Location] = []
    others: list[str] = []
    for name in names:
        if is_uri(name):
            trees.append(location_of(name))
        elif Path(name).is_dir() or (files and Path(name).exists()):
            trees.append(Path(name))
        else:
            others.append(name)
    return trees, others


def check_together(together: str | None, root: Path | Location) -> Together:
    """The word that was given; where there is none `all` for a folder, `partition` for a prefix. Raises UserError on another one."""
    if together is None:
        return "partition" if isinstance(root, Location) else "all"
    if together not in ("all", "partition", "file"):
        raise UserError(f"got together {together!r}", "all, partition or file")
    return together  # type: ignore[return-value]  # it is one of them


def _hangs_together(mark: Mark | None, name: str) -> bool:
    return mark is not None and mark.format == name and not mark.separate


def _only(file: File, starts: Mapping[str, Mark]) -> dict[str, Mark]:
    return {str(file.path): starts[str(file.path)]} if str(file.path) in starts else {}


def _path(file: File, starts: Mapping[str, Mark]) -> Path:
    start = starts.get(str(file.path))
    return file.path if start is None else StreamPath.of(Tail(str(file.path), start.end, file.size - start.end))


def _is_separate(name: str, trace: Trace) -> bool:
    connector = get(name)
    return isinstance(connector, Separate) and connector.is_separate(trace)


def _moved_trace(trace: Trace, start: Mark | None) -> Trace:
    if start is None or trace.source.line is None:
        return trace
    return replace(trace, source=replace(trace.source, line=trace.source.line + start.lines))


def _moved_row(row: Rejected, start: Mark | None) -> Rejected:
    if start is None:
        return row
    return replace(row, line=None if row.line is None else row.line + start.lines, byte_offset=row.byte_offset + start.end)


def _held(store: Store, files: Sequence[File], how: str) -> dict[str, Mark]:
    """The marks of files that were read in the same way."""
    names = {_name(file.uri): file.uri for file in files}
    marks = {names[name]: _mark_of(text) for name, text in store.watermarks([*names]).items()}
    return {uri: mark for uri, mark in marks.items() if mark is not None and mark.how == how}


def _name(uri: str) -> str:
    """What a mark is kept under: the name of a file may hold what is not to be stored."""
    return _MARK + content_key("file", uri)


def _mark_of(text: str) -> Mark | None:
    try:
        return Mark(**json.loads(text))
    except (ValueError, TypeError):
        return None  # of another version: it is read again


def _marks_of(part: Part, how: str) -> dict[str, Mark]:
    """The marks of a part that was read."""
    ends = {file.uri: _whole_lines(file, part.starts.get(str(file.path))) for file in part.files} if part.separate else {}
    cut = {str(file.path): ends[file.uri][0] for file in part.files if file.uri in ends}
    few = len(part.rejected) <= _FEW
    separate = part.separate and few and all(row.byte_offset >= cut.get(row.uri, -1) > 0 for row in part.rejected)
    connector = part.unit.connector
    return {
        file.uri: Mark(file.stamp, how, connector, separate, file.identity, file.size, *(ends[file.uri] if separate else ()))
        for file in part.files
    }


def _whole_lines(file: File, start: Mark | None) -> tuple[int, int, str]:
    """Where the whole lines of a local text end, how many they are, and a digest of the bytes before; zero where it is none."""
    if not file.identity or is_zipped(file.path) or is_parquet(file.path) or is_document(file.path):
        return 0, 0, ""
    end, lines = (start.end, start.lines) if start else (0, 0)
    with file.path.open("rb") as stream:
        stream.seek(end)
        at = end
        while at < file.size and (piece := stream.read(min(_SCAN_BYTES, file.size - at))):
            newline = piece.rfind(b"\n")
            if newline >= 0:
                end, lines = at + newline + 1, lines + piece.count(b"\n")
            at += len(piece)
    return end, lines, _digest_before(file.path, end)


def _has_grown(file: File, mark: Mark) -> bool:
    """Whether a file is what it was when it was read, and more behind it."""
    if not (mark.separate and mark.end and file.identity == mark.identity and file.size > mark.size):
        return False
    return _digest_before(file.path, mark.end) == mark.tail


def _digest_before(path: Path, end: int) -> str:
    """Of the beginning, and of what stands before a byte."""
    with path.open("rb") as stream:
        head = stream.read(min(_TAIL_BYTES, end))
        stream.seek(max(0, end - _TAIL_BYTES))
        return blake2b(head + stream.read(min(_TAIL_BYTES, end)), digest_size=16).hexdigest()


def _local(path: Path) -> File | None:
    """None where it has gone since the folder was listed."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    moving = time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < _LOCAL_TICK_NS
    stamp = "" if moving else f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"
    return File(path, f"file://{os.path.abspath(path)}", found.st_size, stamp, f"{found.st_dev}:{found.st_ino}")  # noqa: PTH100  no links resolved


def _partitions(root: Path, files: Iterable[File]) -> list[list[File]]:
    groups: dict[tuple[str, ...], list[File]] = defaultdict(list)
    for file in files:
        parts = file.path.relative_to(root).parts[:-1]
        last = max((place for place, part in enumerate(parts, 1) if _PARTITION.fullmatch(part)), default=0)
        groups[parts[:last]].append(file)
    return list(groups.values())


def _objects(found: Iterable[Entry]) -> list[File]:
    now = time.time_ns() // 1000
    return [_object(entry, settled=now - entry.modified_us >= _OBJECT_TICK_US) for entry in found]


def _object(entry: Entry, *, settled: bool) -> File:
    stamp = f"{entry.size} {entry.modified_us}"
    path = StreamPath.of(Remote(entry.location, entry.size, stamp))
    return File(path, entry.location.uri, entry.size, stamp if settled else "")


def _in_order(files: Sequence[File]) -> list[File]:
    """Files that are read in this order: of objects, the next are fetched ahead."""
    remote = [path.origin for file in files if isinstance(path := file.path, StreamPath) and isinstance(path.origin, Remote)]
    if len(remote) < len(files):
        return list(files)
    return [replace(file, path=path) for file, path in zip(files, in_order(remote), strict=True)]


def _walked(root: Location, *, by_partition: bool) -> Iterator[list[Entry]]:
    """The objects under a prefix, those of a partition folder together; hidden ones (a name with . or _ in front) are passed over."""
    if not by_partition:
        yield _shown(root, entries(root, recursive=True)[0])
        return
    rest: list[Entry] = []
    yield from _walk(root, root, rest)
    if rest:
        yield rest


def _walk(root: Location, folder: Location, bag: list[Entry]) -> Iterator[list[Entry]]:
    """The partitions below a folder; what is in none is put into the bag."""
    files, folders = entries(folder, recursive=False)
    bag += _shown(root, files)
    shown = [inner for inner in folders if not _is_hidden(root, inner.path)]
    plain = [inner for inner in shown if not _PARTITION.fullmatch(inner.path.rpartition("/")[2])]
    for inner in shown:
        if inner not in plain:
            own: list[Entry] = []
            yield from _walk(root, inner, own)
            if own:
                yield own
        elif len(plain) > _MANY_FOLDERS:
            bag += _shown(root, entries(inner, recursive=True)[0])
        else:
            yield from _walk(root, inner, bag)


def _shown(root: Location, found: Iterable[Entry]) -> list[Entry]:
    return [entry for entry in found if not _is_hidden(root, entry.location.path)]


def _is_hidden(root: Location, path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path[len(root.path) + 1 :].split("/"))

"""Reading log files: JSON lines or JSON documents, plain, gzipped or in Zstandard, one record at a time.

Memory is bounded by the longest line (or by the document, where a file is one). What can't be read becomes a `Rejected` with
file, line, byte offset and reason, and the good records before and after it are still given out; offsets count in the
uncompressed text. A file that is no text at all raises SourceError.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from counterplay.connectors.strict import DECODER, MAX_PARTS, is_compact, is_dense, parse_json, quick_json, refuse_dense
from counterplay.core.errors import SourceError
from counterplay.core.records import Rejected

__all__ = [
    "MAX_PARTS", "MAX_RECORD_BYTES", "REASON_CHARS", "SAMPLE_BYTES", "Entry", "Line", "Wanted", "entries", "entries_of", "is_compact",
    "is_document", "is_zipped", "leading_objects", "lines", "open_bytes", "parse_json", "parse_line", "quick_json", "refuse_dense",
    "sample_of",
]  # fmt: skip

MAX_RECORD_BYTES = 256 << 20
SAMPLE_BYTES = 1 << 18
REASON_CHARS = 1000
_RAW_BYTES = 400
_DEEPEST = 900  # the parser gives up on more
_SKIP_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 18
_SPACE, _RETURN = ord(" "), ord("\r")
_BOM = b"\xef\xbb\xbf"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_WINDOW = 1 << 27
_ZSTD_BYTES = 1 << 12  # few: they may unpack to thirty thousand times as many
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_TORN = ", which is torn off"
_BLANK = re.compile(r"[ \t\r\n]*")
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["{}\[\],]', re.DOTALL)


Wanted: TypeAlias = Callable[[bytes, int, int], bool]
"""Says of the line between two places of some bytes whether it is wanted."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its ending. `number` is 1-based, `offset` the byte at which it starts in the uncompressed text.

    It stands in `source` from `start` to `end` (None: its end), and is cut out of it when it is asked for.
    """

    number: int
    offset: int
    source: bytes
    start: int = 0
    end: int | None = None

    @property
    def data(self) -> bytes:
        return self.source[self.start : self.end]

    @property
    def stop(self) -> int:
        """Where it ends."""
        return len(self.source) if self.end is None else self.end


@dataclass(frozen=True, slots=True)
class Entry:
    """One JSON object of a file and where it stood. `line` is None inside a JSON document; `index` counts records from 0."""

    value: dict[str, Any]
    path: Path
    index: int
    line: int | None
    offset: int

    def reject(self, reason: str) -> Rejected:
        """This record as a quarantine row."""
        return Rejected(str(self.path), reason[:REASON_CHARS], self.line, self.offset, json.dumps(self.value, default=str)[:_RAW_BYTES])


class _Gzip(io.RawIOBase):
    """The uncompressed bytes of a gzipped file; damage is an OSError wherever it shows."""

    def __init__(self, path: Path) -> None:
        self._packed = path.open("rb")
        self._stream = gzip.GzipFile(fileobj=self._packed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            found = self._stream.read1(len(buffer))  # what is there at once: all before the damage
        except (EOFError, zlib.error) as error:
            raise OSError(str(error)) from error
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._stream.close()
        self._packed.close()
        super().close()


class _Zstandard(io.RawIOBase):
    """The uncompressed bytes of a file in Zstandard, frame after frame; damage is an OSError wherever it shows."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self._damage = zstandard.ZstdError
        self._packed = path.open("rb")
        self._fresh = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj
        self._frame = self._fresh()
        self._rest, self._begun = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            if not self._unpack():
                return 0
        found, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(found)] = found
        return len(found)

    def _unpack(self) -> bool:
        """Take some packed bytes more; False at the end of the file."""
        packed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame, self._begun = self._fresh(), False
        packed = packed or self._packed.read(_ZSTD_BYTES)
        if not packed:
            if self._begun:
                msg = "the last frame ends too early"
                raise OSError(msg)
            return False
        self._begun = True
        try:
            self._rest = self._frame.decompress(packed)
        except self._damage as error:
            raise OSError(str(error)) from error
        return True

    def close(self) -> None:
        self._packed.close()
        super().close()


_PACKED: dict[bytes, Callable[[Path], io.RawIOBase]] = {b"\x1f\x8b": _Gzip, _ZSTD_MAGIC: _Zstandard}


def open_bytes(path: Path) -> io.BufferedIOBase:
    """The uncompressed bytes of a plain file, or of one in gzip or Zstandard, whose reading raises OSError where it is damaged.

    Raises SourceError where it can't be opened.
    """
    try:
        if not path.is_file():
            raise SourceError(f"got {path}", "a file", "Check the path." if not path.exists() else "Give a regular file or a folder.")
        opener = _PACKED.get(_magic(path), _plain)
        return io.BufferedReader(opener(path), _SKIP_BYTES)
    except (OSError, ValueError) as error:
        raise SourceError(f"got {path}, which can't be opened ({error})", "a readable file") from error


def is_zipped(path: Path) -> bool:
    """Whether a file is compressed. Raises OSError where it can't be opened."""
    return _magic(path) in _PACKED


def _plain(path: Path) -> io.RawIOBase:
    return path.open("rb", buffering=0)


def _magic(path: Path) -> bytes:
    """The first bytes of a file, as many as tell how it is packed."""
    with path.open("rb") as stream:
        head = stream.read(4)
    return head if head == _ZSTD_MAGIC else head[:2]


def sample_of(path: Path, size: int = SAMPLE_BYTES) -> bytes:
    """The first `size` bytes, uncompressed and without a byte order mark; fewer where the file ends or breaks earlier."""
    taken = bytearray()
    with open_bytes(path) as stream:
        try:
            while len(taken) < size and (more := stream.read1(size - len(taken))):
                taken += more
        except OSError:
            return bytes(taken).removeprefix(_BOM)
    return bytes(taken).removeprefix(_BOM)


def lines(path: Path, *, max_bytes: int = MAX_RECORD_BYTES, wanted: Wanted | None = None) -> Iterator[Line | Rejected]:
    """The lines of a text file that are not blank, in order, without ever holding more than one.

    Those that are not `wanted` come out without their data. A line longer than `max_bytes` and what follows a break in a gzip stream are
    Rejected. Raises SourceError on a binary file.
    """
    _refuse_binary(path, sample_of(path, 8192))
    with open_bytes(path) as stream:
        number, offset = 1, 0
        try:
            beginning = stream.read(len(_BOM))
            offset = len(_BOM) if beginning == _BOM else 0
            for source, start, length, size in _split(
                chain([beginning[offset:]], iter(lambda: stream.read1(_CHUNK_BYTES), b"")), max_bytes
            ):
                end = start + length
                if length > max_bytes:
                    yield Rejected(
                        str(path), f"a line of {size} bytes, wanted at most {max_bytes}", number, offset, _raw(source[start:end])
                    )
                elif not _is_blank(source, start, end):
                    while source[end - 1] == _RETURN:
                        end -= 1
                    chosen = wanted is None or wanted(source, start, end)
                    yield Line(number, offset, source, start, end) if chosen else Line(number, offset, b"")
                number, offset = number + 1, offset + size
        except OSError as error:
            yield Rejected(str(path), f"the file can't be read on from here, it is cut short or damaged ({error})", number, offset)


def _split(chunks: Iterable[bytes], max_bytes: int) -> Iterator[tuple[bytes, int, int, int]]:
    """Each line: the bytes it stands in, where it starts in them, its length, and its size with its ending.

    Lines are not cut out of the chunk they stand in. Of one that is longer than `max_bytes` only the beginning may be there.
    """
    begun, held = list[bytes](), 0  # a line whose end is in a chunk to come
    for chunk in chunks:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            length = end - start
            if held:
                begun.append(chunk[start : end if held <= max_bytes else start])
                yield b"".join(begun), 0, held + length, held + length + 1
                begun, held = [], 0
            else:
                yield chunk, start, length, length + 1
            start = end + 1
        rest = len(chunk) - start
        if rest and held <= max_bytes:
            begun.append(chunk[start:] if held + rest <= max_bytes else chunk[start : start + _RAW_BYTES])
        held += rest
    if held:
        yield b"".join(begun), 0, held, held


def _is_blank(source: bytes, start: int, end: int) -> bool:
    return start == end or (source[start] <= _SPACE and source[start:end].isspace())


def parse_line(path: Path, line: Line, index: int = 0) -> Entry | Rejected:
    """The JSON object on a line; Rejected where it is not UTF-8, not JSON, not an object, or names a key twice."""
    data = line.data
    try:
        value = quick_json(data)
    except ValueError as error:
        return Rejected(str(path), str(error), line.number, line.offset, _raw(data))
    if not isinstance(value, dict):
        return Rejected(str(path), f"a JSON {_kind(value)}, wanted an object", line.number, line.offset, _raw(data))
    return Entry(value, path, index, line.number, line.offset)


def entries(path: Path, *, max_bytes: int = MAX_RECORD_BYTES) -> Iterator[Entry | Rejected]:
    """The JSON objects of a file, whatever its name: JSON lines, one JSON object, or a JSON array of objects.

    Every byte that is not white space is in an Entry or named by a Rejected. Raises SourceError on a binary file.
    """
    if is_document(path):
        yield from _document(path, max_bytes)
        return
    for index, line in enumerate(lines(path, max_bytes=max_bytes)):
        yield line if isinstance(line, Rejected) else parse_line(path, line, index)


def is_document(path: Path) -> bool:
    """Whether a file is one JSON text spread over lines, or one array, and not a JSON object a line."""
    return _is_document(sample_of(path))


def entries_of(paths: Iterable[Path], *, max_bytes: int = MAX_RECORD_BYTES) -> Iterator[Entry | Rejected]:
    """The entries of several files in order; a file that can't be read at all is one Rejected and the others go on."""
    for path in paths:
        try:
            yield from entries(path, max_bytes=max_bytes)
        except SourceError as error:
            yield Rejected(str(path), str(error))


def leading_objects(sample: bytes, limit: int = 20) -> list[dict[str, Any]]:
    """Up to `limit` objects at the beginning of a file, for detection: of its lines, or of its top-level array.

    An object that the sample cuts short is closed where it was cut, so that its structure shows. Damaged lines are passed over.
    """
    return list(_leading(sample, limit))


@lru_cache(maxsize=4)
def _leading(sample: bytes, limit: int) -> tuple[dict[str, Any], ...]:
    """Kept for the next connector, which is asked about the same sample."""
    text = sample.removeprefix(_BOM).decode(errors="replace").lstrip()
    if _is_document(sample):
        value = _loads_cut(text)
        found = value if isinstance(value, list) else [value]
    else:
        found = [_loads_cut(line) for line in text.splitlines()[: limit * 5] if line.strip()]
    return tuple([value for value in found if isinstance(value, dict)][:limit])


def _loads_cut(text: str) -> Any:
    """JSON that may end early: what is complete up to the last comma or bracket. None where it is not JSON even so."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    closers: list[str] = []
    kept: list[str] = []  # what is still open at the cut
    cut = 0
    for token in _TOKEN.finditer(text):
        match token[0]:
            case "{" | "[":
                closers.append("}" if token[0] == "{" else "]")
                cut = token.end()
            case "}" | "]":
                if not closers or closers.pop() != token[0]:
                    return None
                continue
            case ",":
                cut = token.start()
            case '"':
                break
            case _:
                continue
        if len(closers) > _DEEPEST:
            return None
        kept = closers.copy()
    try:
        return json.loads(text[:cut] + "".join(reversed(kept)))
    except (ValueError, RecursionError):
        return None


def _is_document(sample: bytes) -> bool:
    """Whether a file is one JSON text spread over lines (or one array) and not a JSON object a line."""
    head = sample.removeprefix(_BOM).lstrip()
    first, newline, rest = head.partition(b"\n")
    first = first.rstrip()
    if head[:1] not in (b"{", b"[") or (head[:1] == b"{" and not newline):
        return False
    if first in (b"{", b"["):
        return True
    if newline and (_is_object(first) or _is_object(rest.lstrip().partition(b"\n")[0])):
        return False
    return head[:1] == b"[" or first[-1:] in (b"{", b"[", b",", b":")


def _is_object(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


def _document(path: Path, max_bytes: int) -> Iterator[Entry | Rejected]:
    with open_bytes(path) as stream:
        taken = bytearray()
        end = ""
        try:
            while len(taken) <= max_bytes and (more := stream.read1(_SKIP_BYTES)):
                taken += more
        except OSError as error:
            end = f"the file is cut short or damaged ({error})"
    if len(taken) > max_bytes:
        yield Rejected(str(path), f"one JSON document of more than {max_bytes} bytes, wanted JSON lines for files so large")
        return
    data = bytes(taken)
    if not end and data.lstrip(_BOM).startswith(b"{"):
        whole = _whole(data.removeprefix(_BOM))
        if whole is not None:
            yield Entry(whole, path, 0, None, len(_BOM) if data.startswith(_BOM) else 0)
            return
    yield from _values(path, data)
    if end:
        yield Rejected(str(path), end, None, len(taken))


def _whole(data: bytes) -> dict[str, Any] | None:
    """A document that is one good object; None where it is not, and has to be looked at value by value."""
    try:
        value = quick_json(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _values(path: Path, data: bytes) -> Iterator[Entry | Rejected]:
    """The objects of a document, one after another or in an array. Bad bytes ride along as lone surrogates and are then named."""
    skipped = len(_BOM) if data.startswith(_BOM) else 0
    text = data[skipped:].decode(errors="surrogateescape")
    position = _blank(text, 0)
    inside = text[position] == "["
    offset, counted, index, torn = skipped, 0, 0, False
    dense = is_dense(text, 0, len(text))
    position += inside
    while (position := _blank(text, position)) < len(text):
        if inside and text[position] == "]":
            inside, position = False, position + 1
            continue
        offset, counted = offset + _size(text[counted:position]), position
        value, position, reason = _value(text, position, dense=dense)
        if reason:
            yield Rejected(str(path), reason, None, offset, _raw(text[counted : counted + _RAW_BYTES].encode(errors="surrogateescape")))
        else:
            yield Entry(value, path, index, None, offset)
        index += 1
        torn = reason.endswith(_TORN)
        position = _blank(text, position)
        position += inside and text[position : position + 1] == ","
    if inside and not torn:  # a record that is torn off says so itself
        yield Rejected(str(path), "the JSON array ends without its closing bracket", None, len(data))


def _value(text: str, start: int, *, dense: bool) -> tuple[Any, int, str]:
    """The value at `start`, where it ends, and what is wrong with it. `dense`: it may have more parts than should be held."""
    try:
        if dense:
            refuse_dense(text, start, _end_of(text, start))
        value, end = DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        closed, where = _closing(text, start), f"at character {error.pos - start} of the record"
        reason = f"not JSON: {error.msg.removesuffix(' at')} {where}"
        return None, len(text) if closed is None else closed, reason + _TORN * (closed is None)
    except RecursionError:
        return None, _end_of(text, start), "nested too deeply to be read"
    except ValueError as error:
        return None, _end_of(text, start), str(error)
    if not isinstance(value, dict):
        return None, end, f"a JSON {_kind(value)}, wanted an object"
    try:
        text[start:end].encode()
    except UnicodeEncodeError as error:
        return None, end, f"not UTF-8: byte 0x{ord(text[start + error.start]) & 0xFF:02x} in the record"
    return value, end, ""


def _end_of(text: str, start: int) -> int:
    """Where a damaged value probably ends: at the bracket that closes it, else at the end of the text."""
    closed = _closing(text, start)
    return len(text) if closed is None else closed


def _closing(text: str, start: int) -> int | None:
    """Behind the bracket that closes the value at `start`; None where the text ends inside of it."""
    depth = 0
    for token in _TOKEN.finditer(text, start):
        depth += (token[0] in "{[") - (token[0] in "}]")
        if depth <= 0 and token[0] in "}]":
            return token.end()
        if depth == 0 and token[0] == "," and token.start() > start:
            return token.start()
    return None


def _blank(text: str, position: int) -> int:
    found = _BLANK.match(text, position)
    return found.end() if found else position


def _size(text: str) -> int:
    return len(text.encode(errors="surrogateescape"))


def _raw(data: bytes) -> str:
    return data[:_RAW_BYTES].decode(errors="replace")


def _kind(value: object) -> str:
    return {list: "array", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")


def _refuse_binary(path: Path, first: bytes) -> None:
    """Text logs begin with readable characters. NUL bytes further on are one damaged record, as a crash leaves them."""
    if first.startswith(_UTF16):
        raise SourceError(f"got {path}, which is UTF-16 text", "UTF-8", "Convert it: iconv -f UTF-16 -t UTF-8.")
    if b"\0" in first and first.lstrip()[:1] not in (b"{", b"["):
        raise SourceError(f"got {path}, which is a binary file", "JSON lines or JSON text, plain or gzipped")

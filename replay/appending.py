"""Append-only files of JSON lines that several threads and processes may write, and that a killed writer can't spoil.

Each line is written whole, in a compressed file as a gzip member of its own. A last line that was torn by a kill is cut off by
whoever writes next, so that it never spoils the line behind it.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from counterplay.core.errors import UserError
from counterplay.core.nouns import parse_json_object

_CHUNK_BYTES = 1 << 20
_HEAD_BYTES = 64


class Appender:
    """An open append-only file: `.gz` is compressed, anything else is plain.

    `openings` are the ways in which a line may begin, `kind` is what such a file is called, `writer` what writes it. A file that was
    moved away is begun anew, and a process that was forked opens it for itself. Where a system has no POSIX locks, writing is safe
    from several threads only.
    """

    def __init__(self, path: str | os.PathLike[str], *, openings: tuple[bytes, ...], kind: str, writer: str) -> None:
        """Raises OSError where the file can't be opened."""
        self.path, self._openings, self._kind, self._writer = Path(path).absolute(), openings, kind, writer
        self._compressed = self.path.suffix == ".gz"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock, self._pid = threading.Lock(), os.getpid()
        self._file = self._opened()
        self._end = 0

    def close(self) -> None:
        self._file.close()

    def write(self, line: bytes) -> int:
        """Append one line, which ends in a line break, and give the byte at which it stands; it has left the process when this returns.

        Raises, with nothing written, OSError where it can't be, and UserError where the file holds something else.
        """
        data = gzip.compress(line, mtime=0) if self._compressed else line
        if self._pid != os.getpid():
            self._lock, self._pid = threading.Lock(), os.getpid()  # a thread of the other process may have held the lock
            self._open_again()
        with self._lock:
            if self._moved():
                self._open_again()
            with exclusive(self._file):
                self._mend(self._since_last(), lambda line: line.startswith(self._openings))
                append(self._file, data)
                self._end = self._file.tell()
                return self._end - len(data)

    def scan(self, take: Callable[[bytes], bool]) -> None:
        """Show every line to `take`, which says whether it is one; a torn last line is cut off. Raises UserError where one is none."""
        with self._lock, exclusive(self._file):
            self._mend(lines(self._file, compressed=self._compressed), take)

    def _opened(self) -> BinaryIO:
        return self.path.open("ab+", buffering=0)

    def _open_again(self) -> None:
        self._file.close()
        self._file, self._end = self._opened(), 0

    def _moved(self) -> bool:
        """Whether the file at this path is another one by now, as after a rotation of logs."""
        try:
            return not os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return True

    def _since_last(self) -> Iterable[tuple[int, bytes]]:
        """What others may have left torn since this process last wrote: of a plain file the end of it alone has to be looked at."""
        size = os.fstat(self._file.fileno()).st_size
        if size == self._end:
            return ()
        known = self._end if size > self._end else 0
        if self._compressed:
            return _gzip_members(self._file, known)
        return _tail(self._file, size, known)

    def _mend(self, found: Iterable[tuple[int, bytes]], take: Callable[[bytes], bool]) -> None:
        for end, line in found:
            whole = line.endswith(b"\n")
            if not whole and parse_json_object(line.decode(errors="replace")) is None:
                if not any(line[: len(opening)] == opening[: len(line)] for opening in self._openings):
                    raise self._foreign(end)
                self._file.truncate(end)
                break
            if not take(line):
                raise self._foreign(end)
            if not whole:
                append(self._file, b"\n")
        self._end = os.fstat(self._file.fileno()).st_size

    def _foreign(self, offset: int) -> UserError:
        got = f"{self.path} holds something that is not {self._kind} near byte {offset}"
        return UserError(got, f"one JSON object a line, written by {self._writer}", "Give a path of its own.")


def append(file: BinaryIO, data: bytes) -> None:
    """Write all of it or nothing: what a full disk cut short is taken back."""
    start, view = file.seek(0, os.SEEK_END), memoryview(data)
    try:
        while view:
            view = view[file.write(view) :]
    except BaseException:
        file.truncate(start)
        raise


def lines(file: BinaryIO, *, compressed: bool, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Lines with the offset behind each, from `start`. A torn tail comes last, without a line break and with the offset in front of it.

    In a compressed file every line is a gzip member of its own; what is no such member comes as a NUL byte.
    """
    if compressed:
        yield from _gzip_members(file, start)
        return
    file.seek(start)
    end = start
    with os.fdopen(os.dup(file.fileno()), "rb") as stream:
        for line in stream:
            end += len(line) if line.endswith(b"\n") else 0
            yield end, line


@contextlib.contextmanager
def exclusive(file: BinaryIO) -> Iterator[None]:
    """Hold the file against other processes, where the system can."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _tail(file: BinaryIO, size: int, known: int) -> Iterator[tuple[int, bytes]]:
    """The first line of a file that was not looked at yet, as far as it shows what the file is, and the last where it is torn."""
    file.seek(0)
    head = b"" if known else file.read(_HEAD_BYTES)
    if b"\n" in head or len(head) == _HEAD_BYTES:
        yield 0, head.partition(b"\n")[0] + b"\n"
    start, tail, length = size, b"", _HEAD_BYTES
    while start > known and b"\n" not in tail:
        length = min(16 * length, start - known)
        start -= length
        file.seek(start)
        tail = file.read(length) + tail
    torn = tail.rpartition(b"\n")[2]
    if torn:
        yield size - len(torn), torn


def _gzip_members(file: BinaryIO, start: int = 0) -> Iterator[tuple[int, bytes]]:
    file.seek(start)
    end, pending, text = start, b"", b""
    member, consumed = zlib.decompressobj(wbits=31), 0
    while chunk := pending or file.read(_CHUNK_BYTES):
        try:
            text += member.decompress(chunk)
        except zlib.error:
            yield end, b"\0"  # not gzip, so not ours to cut
            return
        pending = member.unused_data
        consumed += len(chunk) - len(pending)
        if member.eof:
            end += consumed
            yield end, text if text.endswith(b"\n") else b"\0"
            member, consumed, text = zlib.decompressobj(wbits=31), 0, b""
    if consumed:
        yield end, text[:-2]  # never whole, even where only the checksum is missing

"""Objects as paths: what reads files from a path reads objects in the same way, in pieces, and says by itself where they lie.

A piece is a ranged request that is repeated where it fails, from where it failed. After each the object's etag is asked for again, so
that what is given out is always a beginning of one version. Small objects are fetched whole, those that are next ahead of time.
"""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from counterplay.core.errors import SourceError
from counterplay.objects import Location, T, ToldError, tag_of, tried

if TYPE_CHECKING:
    _Base = Path
else:
    _Base = type(Path())

UNREAD = "was not read to its end"
"""In the reason of an error that is the network's or the moment's, not the content's: what is read later is whole."""

GONE = "is not there any more"

_SMALL_BYTES = 4 << 20
_FIRST_BYTES = 1 << 20
_PIECE_BYTES = 8 << 20
_KEPT_BYTES = 64 << 20
_AHEAD = 16


class Origin(Protocol):
    """Where the bytes of a path come from. `uri` is its name, `size` its bytes."""

    @property
    def uri(self) -> str: ...
    @property
    def size(self) -> int: ...
    def open(self) -> io.RawIOBase: ...


class StreamPath(_Base):
    """A path whose bytes come from an `Origin`. A path made from it (a parent, a sibling) names a file that is not there."""

    origin: Origin | None = None

    @classmethod
    def of(cls, origin: Origin) -> StreamPath:
        made = cls("/" + origin.uri)
        made.origin = origin
        return made

    def __str__(self) -> str:
        return super().__str__() if self.origin is None else self.origin.uri

    def __fspath__(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"StreamPath({str(self)!r})"

    def __hash__(self) -> int:
        return hash(str(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StreamPath) and str(self) == str(other)

    def __reduce__(self) -> tuple[Callable[..., Path], tuple[Any, ...]]:
        return (Path, (super().__str__(),)) if self.origin is None else (StreamPath.of, (self.origin,))

    def is_file(self, **_: Any) -> bool:
        return self.origin is not None

    def is_dir(self, **_: Any) -> bool:
        return False

    def exists(self, **_: Any) -> bool:
        return self.origin is not None

    def absolute(self) -> StreamPath:
        return self

    def resolve(self, strict: bool = False) -> StreamPath:  # noqa: ARG002  the shape of what it replaces
        return self

    def stat(self, **_: Any) -> os.stat_result:
        if self.origin is None:
            raise FileNotFoundError(str(self))
        return os.stat_result((0o100444, 0, 0, 1, 0, 0, self.origin.size, 0, 0, 0))

    def open(self, mode: str = "r", buffering: int = -1, *_: Any, **__: Any) -> Any:
        """Binary, for reading. Raises FileNotFoundError on a path that was made from another, ValueError on another mode."""
        if mode != "rb":
            msg = f"got mode {mode!r} for {self}, wanted 'rb'"
            raise ValueError(msg)
        if self.origin is None:
            raise FileNotFoundError(str(self))
        raw = self.origin.open()
        return raw if buffering == 0 else io.BufferedReader(raw, _FIRST_BYTES)


@dataclass(frozen=True, slots=True)
class Tail:
    """A local file from an offset on. `uri` is the file's path as text."""

    uri: str
    start: int
    size: int

    def open(self) -> io.RawIOBase:
        return _TailStream(self.uri, self.start)


class _TailStream(io.FileIO):
    """The beginning is where the tail starts."""

    def __init__(self, path: str, start: int) -> None:
        super().__init__(path)
        self._start = start
        super().seek(start)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return super().seek(offset + (self._start if whence == io.SEEK_SET else 0), whence) - self._start

    def tell(self) -> int:
        return super().tell() - self._start


@dataclass(frozen=True, slots=True)
class Remote:
    """An object as a listing names it; `stamp` is when it was changed. `tag` is the etag that it has to have, empty: whichever it has.

    `beside` are the objects that are read in this order, this one among them: the next are fetched ahead.
    """

    location: Location
    size: int
    stamp: str = ""
    tag: str = ""
    beside: Sequence[Remote] = field(default=(), compare=False, repr=False)
    place: int = 0

    @property
    def uri(self) -> str:
        return self.location.uri

    def open(self) -> io.RawIOBase:
        for other in self.beside[self.place + 1 : self.place + _AHEAD]:
            if other.size <= _SMALL_BYTES:
                _KEPT.ask(other)
        head = _KEPT.get(self)
        return _Bytes(head.data) if len(head.data) == head.size else _Pieces(self, head)


@dataclass(frozen=True, slots=True)
class _Head:
    """How an object begins; all of it where it is small."""

    tag: str
    size: int
    data: bytes


def in_order(objects: Iterable[Remote]) -> list[StreamPath]:
    """Objects that are read in this order, as paths."""
    beside: list[Remote] = []
    beside += [replace(remote, beside=beside, place=place) for place, remote in enumerate(objects)]
    return [StreamPath.of(remote) for remote in beside]


class _Bytes(io.RawIOBase):
    """Bytes in memory, not copied."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = memoryview(data), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, len(self._data))[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        found = self._data[self._at : self._at + len(buffer)]
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)


class _Pieces(io.RawIOBase):
    """An object in pieces of some megabytes, one of them ahead of who reads in order."""

    def __init__(self, remote: Remote, head: _Head) -> None:
        self._remote, self._size = replace(remote, tag=head.tag), head.size
        self._version: _Version | None = None
        self._at, self._start, self._data = 0, 0, memoryview(head.data)
        self._ahead: tuple[int, Future[bytes]] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._size:
            return 0
        if not self._start <= self._at < self._start + len(self._data):
            self._start, self._data = self._at, memoryview(self._piece(self._at))
        offset = self._at - self._start
        found = self._data[offset : offset + len(buffer)]
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def _piece(self, start: int) -> bytes:
        """The bytes from `start` on."""
        version = self._version = self._version or _Version(self._remote)
        follows = start == self._start + len(self._data)
        ahead, self._ahead = self._ahead, None
        data = ahead[1].result() if ahead and ahead[0] == start else version.read(start, _PIECE_BYTES)
        after = start + len(data)
        if follows and after < self._size:
            self._ahead = after, _threads().submit(version.read, after, _PIECE_BYTES)
        return data

    def close(self) -> None:
        self._ahead, self._data = None, memoryview(b"")
        super().close()


class _Version:
    """One version of an object, read by ranges. Raises OSError that says what happened."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._opened = self._tried(self._open)
        self.tag = tag_of(self._opened)
        self.size = self._opened.size()
        if remote.tag and remote.tag != self.tag:
            self._changed()

    def read(self, start: int, length: int) -> bytes:
        length = min(length, self.size - start)

        def once() -> bytes:
            data: bytes = self._opened.read_at(length, start)
            if len(data) < length:
                msg = f"curlCode: got {len(data)} of {length} bytes"
                raise OSError(msg)
            opened = self._open()
            if tag_of(opened) != self.tag:
                self._changed()
            self._opened = opened
            return data

        return self._tried(once)

    def _open(self) -> Any:
        return self._remote.location.filesystem().open_input_file(self._remote.location.path)

    def _changed(self) -> None:
        _KEPT.drop(self._remote)
        raise _ChangedError(f"{self._remote.uri} {UNREAD}: it changed while it was read")

    def _tried(self, ask: Callable[[], T]) -> T:
        uri = self._remote.uri

        def once() -> T:
            try:
                return ask()
            except FileNotFoundError as error:
                raise _GoneError(f"{uri} {GONE}") from error

        try:
            return tried(once, self._remote.location)
        except SourceError as error:
            raise OSError(f"{uri} {UNREAD}: {error.got}") from error


class _ChangedError(ToldError):
    """Another version stands where one was read."""


class _GoneError(ToldError):
    """The object was deleted since it was listed."""


class _Kept:
    """Beginnings of objects as they were fetched, the last ones used; and those that are on their way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[str, str], tuple[int, Future[_Head]]] = OrderedDict()

    def ask(self, remote: Remote) -> Future[_Head]:
        """Let it be fetched, unless it is there."""
        key = (remote.uri, remote.stamp)
        with self._lock:
            _, found = self._held.get(key, (0, None))
            if found is None or (found.done() and found.exception() is not None):
                found = _threads().submit(_head_of, remote)
                self._held[key] = _wanted(remote.size), found
            self._held.move_to_end(key)
            total = sum(size for size, _ in self._held.values())
            while total > _KEPT_BYTES and len(self._held) > 1:
                total -= self._held.popitem(last=False)[1][0]
        return found

    def get(self, remote: Remote) -> _Head:
        head = self.ask(remote).result()
        if remote.tag and remote.tag != head.tag:
            self.drop(remote)
            raise _ChangedError(f"{remote.uri} {UNREAD}: it changed while it was read")
        return head

    def drop(self, remote: Remote) -> None:
        with self._lock:
            self._held = OrderedDict((key, found) for key, found in self._held.items() if key[0] != remote.uri)


def _head_of(remote: Remote) -> _Head:
    version = _Version(remote)
    return _Head(version.tag, version.size, version.read(0, _wanted(version.size)))


def _wanted(size: int) -> int:
    return size if size <= _SMALL_BYTES else _FIRST_BYTES


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_AHEAD, thread_name_prefix="counterplay-objects")


_KEPT = _Kept()


def is_streamed(path: Path) -> bool:
    """Whether its bytes come over a network."""
    return isinstance(path, StreamPath) and isinstance(path.origin, Remote)

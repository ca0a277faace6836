"""What does not fit into memory, set aside on disk: compressed pages of a file without a name, which is gone however the process ends."""

from __future__ import annotations

import json
import pickle
import struct
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from weakref import finalize

import zstandard

from counterplay.core.errors import UserError
from counterplay.finetune.rows import Drop

PAGE_BYTES = 1 << 20
NAMED = 1000
"""So many of the things that were left out a manifest names; a dataset with more names all of them in a file of its own."""

_OPENED = 6
_LENGTH = struct.Struct("<Q")


@contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """Raises UserError where what is written in the block does not fit, or may not be written there."""
    try:
        yield
    except OSError as error:
        got = f"nothing more can be set aside in {folder}: {error.strerror or error}"
        raise UserError(got, "a folder that may be written to, with room", "What was there before is as it was.") from error


class Spool:
    """Bytes by number, from 0 on in the order they are added. Reading forwards opens each page once, from several places too.

    The file is made in `folder` once there is more than a page.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._page, self._starts = array("L"), array("L")  # of each item: its page, and where it begins there
        self._places, self._sizes = array("Q"), array("L")  # of each page: where it lies in the file, and its compressed size
        self._filling = bytearray()
        self._opened: OrderedDict[int, bytes] = OrderedDict()
        self._compress, self._decompress = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()

    def __len__(self) -> int:
        return len(self._page)

    def add(self, *parts: bytes) -> int:
        """Keep an item, which may have several parts, and give its number."""
        self._page.append(len(self._places))
        self._starts.append(len(self._filling))
        for part in parts:
            self._filling += _LENGTH.pack(len(part)) + part
        if len(self._filling) >= PAGE_BYTES:
            self._turn()
        return len(self._page) - 1

    def part(self, number: int, index: int = 0) -> bytes:
        """The part `index` of the item `number`."""
        page, at = self._read(self._page[number]), self._starts[number]
        for _ in range(index):
            at += _LENGTH.size + _LENGTH.unpack_from(page, at)[0]
        (length,) = _LENGTH.unpack_from(page, at)
        return bytes(memoryview(page)[at + _LENGTH.size : at + _LENGTH.size + length])

    def _turn(self) -> None:
        with room_in(self._folder):
            if self._file is None:
                self._file = TemporaryFile(dir=self._folder)  # noqa: SIM115  closed with the spool
                finalize(self, self._file.close)
            packed = self._compress.compress(bytes(self._filling))
            self._places.append(self._file.seek(0, 2))
            self._sizes.append(len(packed))
            self._file.write(packed)
        self._filling = bytearray()

    def _read(self, page: int) -> bytes | bytearray:
        if page == len(self._places) or self._file is None:
            return self._filling
        if page not in self._opened:
            self._file.seek(self._places[page])
            self._opened[page] = self._decompress.decompress(self._file.read(self._sizes[page]))
            if len(self._opened) > _OPENED:
                self._opened.popitem(last=False)
        self._opened.move_to_end(page)
        return self._opened[page]


class Objects:
    """A `Spool` of Python objects, one or several a number."""

    def __init__(self, folder: Path) -> None:
        self._spool = Spool(folder)

    def __len__(self) -> int:
        return len(self._spool)

    def add(self, *parts: Any) -> int:
        return self._spool.add(*(pickle.dumps(part, pickle.HIGHEST_PROTOCOL) for part in parts))

    def get(self, number: int, index: int = 0) -> Any:
        return pickle.loads(self._spool.part(number, index))  # noqa: S301  this process has just written it


class Dropped:
    """Things that were left out, in order: counted by reason, the first `NAMED` at hand, the others set aside."""

    def __init__(self, folder: Path, told: Callable[[str], str]) -> None:
        self._folder, self._told = folder, told
        self.counts: Counter[str] = Counter()
        self._first: list[Drop] = []
        self._more: Objects | None = None

    def __len__(self) -> int:
        return self.counts.total()

    def add(self, drop: Drop) -> None:
        self.counts[drop.reason] += 1
        clean = Drop(drop.reason, self._told(drop.name), self._told(drop.detail))
        if len(self._first) < NAMED:
            self._first.append(clean)
            return
        if self._more is None:
            self._more = Objects(self._folder)
        self._more.add(clean)

    def __iter__(self) -> Iterator[Drop]:
        yield from self._first
        if self._more is not None:
            for number in range(len(self._more)):
                yield self._more.get(number)


def write_dropped(path: Path, stages: Sequence[Dropped]) -> None:
    """Everything that was left out, one JSON object a line. Names may hold lone surrogates, which are escaped."""
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for stage in stages:
            file.writelines(json.dumps(asdict(drop), ensure_ascii=False) + "\n" for drop in stage)

"""The lines of the journal's files: one entry of JSON each, written whole or torn at the end, read a few at a time."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from counterplay.core.canonical import dumps, loads
from counterplay.core.errors import StoreError

_BATCH_BYTES = 4 << 20
_WAIT_S = 60.0
_TICK_S = 0.05

Entry = tuple[str, str, str, str, int]
"""scope, key, kind, answer, at_us: one line."""


def line_of(entry: Entry) -> bytes:
    try:
        return orjson.dumps(entry) + b"\n"
    except orjson.JSONEncodeError:  # a lone surrogate
        return dumps(entry).encode() + b"\n"


def entry_of(line: bytes) -> Entry | None:
    """The entry of a whole line; None where it is damaged."""
    try:
        fields: Any = loads(line.decode())
    except ValueError:
        return None
    match fields:
        case [str(scope), str(key), str(kind), str(answer), int(at_us)]:
            return scope, key, kind, answer, at_us
        case _:
            return None


def lines_of(path: str) -> Iterator[list[tuple[int, int, bytes]]]:
    """Number, byte offset and bytes of each whole line, some megabytes at a time."""
    batch: list[tuple[int, int, bytes]] = []
    offset = taken = 0
    try:
        with Path(path).open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.endswith(b"\n"):
                    batch.append((number, offset, line))
                offset += len(line)
                if offset - taken > _BATCH_BYTES:
                    yield batch
                    batch, taken = [], offset
    except OSError as error:
        raise StoreError(f"journal {path} can't be read: {error.strerror}", "the file beside the store", "Put it right first.") from error
    if batch:
        yield batch


def leftover_spools(path: str) -> list[str]:
    """The files beside the journal at `path` that are named after it."""
    file = Path(path)
    return sorted(str(found) for found in file.parent.glob(f"{glob.escape(file.name)}.*") if found.is_file())


@contextmanager
def unlocked(path: str) -> Iterator[None]:
    """Once no other process holds the file's lock, which whoever writes to it does. Raises StoreError after a minute."""
    import fcntl

    file = os.open(path, os.O_RDONLY)
    deadline = time.monotonic() + _WAIT_S
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    got = f"a worker of a job that is gone still writes to {path}"
                    raise StoreError(got, "no other process at work on the store", "End it, and open the store again.") from error
                time.sleep(_TICK_S)
        yield
    finally:
        os.close(file)

"""Opening the file: every way it can be refused has one clear message, and a new store appears whole or not at all."""

from __future__ import annotations

import glob
import os
import re
import shutil
import textwrap
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
from duckdb import DuckDBPyConnection

from counterplay.core.errors import StoreError, UserError
from counterplay.core.store.schema import migrate

MEMORY = ":memory:"

_CONFIG: dict[str, str | bool | int | float | list[str]] = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
BLOCK_BYTES = 65536  # the least that compresses well: every table ends in a block that is partly empty
_NEW_FILE = {**_CONFIG, "default_block_size": str(BLOCK_BYTES)}
_PROGRAM = 100
_LEFT = ("new", "tmp", "compact")
_HOLDER = re.compile(r"lock is held in (.*?) \(PID (\d+)\)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])i?)?B", re.IGNORECASE)
_BYTES = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_A_THREAD_BYTES = 32e6  # with less than this for each of its threads DuckDB fails where it could have put aside what does not fit
_writers: set[str] = set()
_readers: Counter[str] = Counter()
_guard = threading.Lock()


def connect(path: str, *, read_only: bool, memory: str | None = None) -> DuckDBPyConnection:
    """Open or create the store at `path`, claimed before, with the newest schema. Raises StoreError or UserError, with nothing changed."""
    config = _CONFIG if memory is None else {**_CONFIG, **_bounded(path, memory)}
    if path == MEMORY:
        connection = duckdb.connect(MEMORY, config=config)
    else:
        check_file(path, read_only=read_only)
        if not Path(path).exists():
            _create(path)
        connection = open_file(path, read_only=read_only, config=config)
        if not read_only:
            sweep(path)
    try:
        if memory is not None:
            connection.execute(f"SET threads = least(current_setting('threads'), {_threads(memory)})")
        migrate(connection, path, read_only=read_only)
    except BaseException:
        connection.close()
        raise
    return connection


def _bounded(path: str, memory: str) -> dict[str, str]:
    """DuckDB's settings for a bound on its memory. What does not fit goes beside the store: there is room there, /tmp may be memory."""
    if _SIZE.fullmatch(memory.strip()) is None:
        raise UserError(f"got {memory!r} as memory for the store", 'a size such as "512MB" or "1GB"')
    return {"memory_limit": memory, **({} if path == MEMORY else {"temp_directory": f"{path}.{os.getpid()}.tmp"})}


def _threads(memory: str) -> int:
    """How many threads so much is enough for."""
    found = _SIZE.fullmatch(memory.strip())
    return max(1, int(float(found[1]) * _BYTES[(found[2] or "").upper()] // _A_THREAD_BYTES)) if found else 1


def claim(path: str, *, read_only: bool) -> None:
    """Note that this process opens `path`. Raises StoreError where another `Store` of this process has it for writing, or has it at all."""
    if path == MEMORY:
        return
    name = os.path.realpath(path)
    with _guard:
        if name in _writers:
            if read_only:
                raise StoreError(f"store {path} is open in this process in another mode", do="Close it first.")
            raise StoreError(f"store {path} is already open for writing in this process", do="Use that Store, or close it first.")
        if not read_only and _readers[name]:
            raise StoreError(f"store {path} is open in this process in another mode", do="Close it first.")
        if read_only:
            _readers[name] += 1
        else:
            _writers.add(name)


def release(path: str, *, read_only: bool) -> None:
    name = os.path.realpath(path)
    with _guard:
        if read_only:
            _readers[name] -= 1
        else:
            _writers.discard(name)


def sweep(path: str) -> None:
    """Remove what processes that were killed left beside the store: drafts of one, and what did not fit into memory."""
    file = Path(path).resolve()
    for leftover in file.parent.glob(f"{glob.escape(file.name)}.*"):
        pid, _, kind = leftover.name.removeprefix(f"{file.name}.").partition(".")
        if pid.isdecimal() and kind.startswith(_LEFT) and not _alive(int(pid)):
            remove(leftover)


def remove(leftover: Path) -> None:
    if leftover.is_dir():
        shutil.rmtree(leftover, ignore_errors=True)
    else:
        leftover.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def check_file(path: str, *, read_only: bool) -> None:
    """Raise where the path can't be a store. A file that this process has open already is left alone: POSIX drops all locks that a
    process holds on a file as soon as it closes that file once, however it came to open it.
    """
    file = Path(path)
    if _readers[os.path.realpath(path)] > 1:
        return
    if file.is_dir():
        raise UserError(f"got a folder as store: {path}", "a file", "Name a file in it, such as store.duckdb.")
    if not file.exists():
        if read_only:
            raise UserError(f"store {path} does not exist", "an existing store", "Make one with: counterplay ingest LOGS --store FILE")
        if not file.parent.is_dir():
            raise UserError(f"folder {file.parent} does not exist", "an existing folder for the store", "Create it first.")
        return
    try:
        with file.open("rb") as stream:
            head = stream.read(12)
    except OSError as error:
        raise UserError(f"store {path} can't be read: {error.strerror}", "a readable file") from error
    if head[8:12] != b"DUCK":
        raise StoreError(f"{path} is not a DuckDB file", "a counterplay store", "Give another --store file; nothing was changed.")


def _create(path: str) -> None:
    """Build an empty store beside `path` and link it into place: a killed creation leaves no half store under that name."""
    draft = f"{path}.{os.getpid()}.new"
    Path(draft).unlink(missing_ok=True)
    try:
        with duckdb.connect(draft, config=_NEW_FILE) as connection:
            migrate(connection, path, read_only=False)
        _place(draft, path)
    except FileExistsError:
        pass  # another process was faster: its store is as good
    except duckdb.IOException as error:
        got = f"store {path} can't be made: {str(error).splitlines()[0]}"
        raise StoreError(got, "a folder that can be written to, with room in it", "Make room, and run again.") from error
    finally:
        for leftover in (draft, f"{draft}.wal"):
            Path(leftover).unlink(missing_ok=True)


def _place(draft: str, path: str) -> None:
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if not Path(path).exists():
            Path(draft).rename(path)


def open_file(path: str, *, read_only: bool, config: Mapping[str, Any]) -> DuckDBPyConnection:
    try:
        return duckdb.connect(path, read_only=read_only, config=dict(config))
    except duckdb.ConnectionException as error:
        raise StoreError(f"store {path} is open in this process in another mode", do="Close it first.") from error
    except duckdb.Error as error:
        raise refusal(path, str(error), read_only=read_only) from error


def refusal(path: str, message: str, *, read_only: bool) -> StoreError:
    holder = _HOLDER.search(message)
    if holder is not None:
        got = f"store {path} is in use by process {holder[2]} ({_program(int(holder[2]), holder[1])})"
        do = "Wait for it or end it; many readers may share a store, a writer has it alone."
        return StoreError(got, "no writer at work" if read_only else "a store that no other process has open", do)
    got = f"store {path} can't be opened: {message.splitlines()[0]}"
    return StoreError(got, "an intact counterplay store", "Restore it from a copy or ingest the logs into a new one.")


def _program(pid: int, executable: str) -> str:
    """The command line of a process, where it may be seen; else its executable."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return executable
    line = " ".join(word for word in words if word)
    return textwrap.shorten(line, _PROGRAM, placeholder=" …") if line else executable

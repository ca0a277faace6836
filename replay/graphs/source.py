"""A customer's checkpoints, which are only ever read: from a database file, or through the reading methods of a live checkpointer.

A file is opened so that nothing in it or beside it is created or changed. What it names is not imported: of classes, only messages
and the like come to life, and those that the caller allows.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import finalize

from counterplay.core.errors import SourceError, UserError

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

Source: TypeAlias = "str | os.PathLike[str] | BaseCheckpointSaver[Any]"
"""The path of an SQLite database that LangGraph wrote, or a checkpointer of any kind."""

_SQLITE, _WAL = b"SQLite format 3\0", b"\2\2"
_MAX_COPY_BYTES = 8 << 30
_ATTEMPTS = 5


def reader(source: Source, allow_classes: Iterable[type] = ()) -> FileReader | LiveReader:
    """What reads `source`. Raises UserError where it is neither a file nor a checkpointer."""
    if isinstance(source, str | os.PathLike):
        return FileReader(source, allow_classes)
    if not hasattr(source, "get_tuple"):
        raise UserError(f"got {type(source).__name__} as a source", "the path of an SQLite database, or a LangGraph checkpointer")
    return LiveReader(source)


class FileReader:
    """Reads an SQLite database of LangGraph's. It is opened for each reading and let go of again.

    Raises SourceError where the file is none, where it holds what can't be read (a pickle, an encrypted value), and where a
    checkpoint holds an object of a class that is not in `allow_classes`.
    """

    def __init__(self, path: str | os.PathLike[str], allow_classes: Iterable[type] = ()) -> None:
        self.path, self._allowed = Path(path), tuple(allow_classes)
        self._copy: tuple[Path, object] | None = None

    def checkpoints(self, thread_id: str) -> list[CheckpointTuple]:
        """Every checkpoint of a thread, sub-graphs included, latest first. Objects are shared between them and must not be changed."""
        with self._saver(shared_serde(self._allowed)) as saver:
            return [*saver.list({"configurable": {"thread_id": thread_id}})]

    async def acheckpoints(self, thread_id: str) -> list[CheckpointTuple]:
        return self.checkpoints(thread_id)

    @contextmanager
    def _saver(self, serde: JsonPlusSerializer) -> Iterator[BaseCheckpointSaver[Any]]:
        try:
            from langgraph.checkpoint.sqlite import SqliteSaver
        except ImportError as error:
            raise SourceError(f"got {self.path}, and LangGraph's SQLite checkpointer is not installed", "",
                              "pip install langgraph-checkpoint-sqlite") from error  # fmt: skip
        try:
            with closing(self._connection()) as connection, _refused() as refused:
                saver = SqliteSaver(connection, serde=serde)
                saver.is_setup = True  # else it would create tables and switch the journal
                yield saver
        except (sqlite3.Error, OSError, NotImplementedError) as error:
            raise SourceError(
                f"got {self.path}, which can't be read as LangGraph checkpoints ({error})", "a database of SqliteSaver"
            ) from error
        if refused:
            names = ", ".join(sorted(refused))
            do = "Name those classes in allow_classes, if you trust the file."
            raise SourceError(f"got {self.path}, whose checkpoints hold objects of {names}", "plain data and messages", do)

    def _connection(self) -> sqlite3.Connection:
        """Read-only. A database whose log is still to be merged is read from a copy: SQLite would write beside it."""
        with self.path.open("rb") as stream:
            head = stream.read(20)
        if head[:16] != _SQLITE:
            raise SourceError(f"got {self.path}, which is no SQLite database", "a database of LangGraph's SqliteSaver")
        if any(_size(path) for path in self._beside()):
            return _connect(self._copied(), "mode=rw")
        return _connect(self.path, "immutable=1" if head[18:20] == _WAL else "mode=ro")

    def _beside(self) -> list[Path]:
        return [self.path.with_name(self.path.name + ending) for ending in ("-wal", "-journal")]

    def _copied(self) -> Path:
        """A copy of the database and its log as they stood together, made again only where they have changed."""
        for _ in range(_ATTEMPTS):
            stamp = self._stamp()
            if self._copy is not None and self._copy[1] == stamp:
                return self._copy[0]
            if (size := sum(map(_size, [self.path, *self._beside()]))) > _MAX_COPY_BYTES:
                got = f"got {self.path}, which needs a copy of {size} bytes to be read"
                raise SourceError(got, "", "Close the program that has it open.")
            folder = Path(mkdtemp(prefix="counterplay-"))
            finalize(self, shutil.rmtree, folder, ignore_errors=True)
            for path in [self.path, *self._beside()]:
                if _size(path):
                    shutil.copyfile(path, folder / path.name)
            self._copy = (folder / self.path.name, stamp)
        raise SourceError(f"got {self.path}, which changes faster than it can be read", "", "Give the live checkpointer in its place.")

    def _stamp(self) -> object:
        return [(path.stat().st_mtime_ns, path.stat().st_size) for path in [self.path, *self._beside()] if path.exists()]


class LiveReader:
    """Reads through a checkpointer; only what lists and gets is called on it."""

    def __init__(self, saver: BaseCheckpointSaver[Any]) -> None:
        self._source = saver

    def checkpoints(self, thread_id: str) -> list[CheckpointTuple]:
        self._refuse_async()
        return [*map(_sharing(), self._source.list({"configurable": {"thread_id": thread_id}}))]

    async def acheckpoints(self, thread_id: str) -> list[CheckpointTuple]:
        if not self._is_async():
            return self.checkpoints(thread_id)
        found: AsyncIterator[CheckpointTuple] = self._source.alist({"configurable": {"thread_id": thread_id}})
        share = _sharing()
        return [share(each) async for each in found]

    def _is_async(self) -> bool:
        return hasattr(self._source, "loop")  # what LangGraph's async checkpointers keep, for they work on no other

    def _refuse_async(self) -> None:
        if self._is_async():
            raise UserError(f"got {type(self._source).__name__}, which is read in its event loop alone", "the database's path, or an await",
                            "Await agraph_forks or afork_graph instead.")  # fmt: skip


def memory_serde() -> JsonPlusSerializer:
    """For copies in memory: whatever the graph's own code put into its state comes back."""
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

    return JsonPlusSerializer(pickle_fallback=True, allowed_msgpack_modules=True)


def shared_serde(allowed: tuple[type, ...] | None = ()) -> JsonPlusSerializer:
    """Reads equal objects as one object, since a thread repeats its messages in every checkpoint. None allows every class."""
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

    strict = memory_serde() if allowed is None else _strict(allowed)
    hook: Callable[[int, bytes], Any] = lru_cache(maxsize=1 << 15)(strict._unpack_ext_hook)  # noqa: SLF001  it is what would be called
    return JsonPlusSerializer(pickle_fallback=strict.pickle_fallback, __unpack_ext_hook__=hook)


def _sharing() -> Callable[[CheckpointTuple], CheckpointTuple]:
    """Makes equal messages of many checkpoints one object, as a file's reader does."""
    serde, known = memory_serde(), dict[bytes, Any]()

    def shared(value: Any) -> Any:
        return known.setdefault(serde.dumps_typed(value)[1], value) if hasattr(value, "additional_kwargs") else value

    def share(found: CheckpointTuple) -> CheckpointTuple:
        values = found.checkpoint["channel_values"]
        told = {name: [shared(each) for each in value] if isinstance(value, list) else value for name, value in values.items()}
        return found._replace(checkpoint={**found.checkpoint, "channel_values": told})

    return share


def _strict(allowed: Iterable[type]) -> JsonPlusSerializer:
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

    return JsonPlusSerializer(allowed_msgpack_modules=tuple(allowed) or None)


@contextmanager
def _refused() -> Iterator[set[str]]:
    """The classes that were not brought to life in this block."""
    from langgraph.checkpoint.serde.event_hooks import register_serde_event_listener

    found: set[str] = set()

    def note(event: Any) -> None:
        if event["kind"] in ("msgpack_blocked", "msgpack_method_blocked"):
            found.add(f"{event['module']}.{event['name']}")

    stop = register_serde_event_listener(note)
    try:
        yield found
    finally:
        stop()


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, check_same_thread=False)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("SELECT count(*) FROM checkpoints LIMIT 1")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0

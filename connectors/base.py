"""What a connector is, which ones there are, and how a file finds the one that can read it.

A connector turns a foreign log into `Trace`s. Formats are told apart by content, never by file name, and nothing is lost in
silence: what can't be read comes out as a `Rejected` row with its place and reason. Third parties add connectors through
the entry point group `counterplay.connectors`; `counterplay.connectors.testing.check_connector` checks one.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, TypeAlias, cast, runtime_checkable

from counterplay.connectors.lines import Entry, Line, entries, entries_of, leading_objects, lines, open_bytes, parse_line, sample_of
from counterplay.core.canonical import content_key
from counterplay.core.errors import SourceError, UserError
from counterplay.core.nouns import Trace, Trajectory
from counterplay.core.records import Rejected

__all__ = [
    "CONNECTORS", "Connector", "Entry", "FolderConnector", "Item", "Line", "Separate", "Unit", "detect", "entries", "entries_of",
    "files_in", "get", "ingest_items", "leading_objects", "lines", "open_bytes", "parse_line", "read_unit", "sample_of", "sorted_out",
    "source_trace_id", "trace_id", "units",
]  # fmt: skip

Item: TypeAlias = "Trace | Rejected"

GROUP = "counterplay.connectors"
_BUILTIN = {
    "atif": "counterplay.connectors.atif:CONNECTOR",
    "bfcl": "counterplay.connectors.bfcl:CONNECTOR",
    "braintrust": "counterplay.connectors.braintrust:CONNECTOR",
    "chatlog": "counterplay.connectors.chatlog:CONNECTOR",
    "claude-code": "counterplay.connectors.claude_code:CONNECTOR",
    "codex": "counterplay.connectors.codex:CONNECTOR",
    "helicone": "counterplay.connectors.helicone:CONNECTOR",
    "inspect": "counterplay.connectors.inspect_ai:CONNECTOR",
    "langfuse": "counterplay.connectors.langfuse:CONNECTOR",
    "langgraph": "counterplay.connectors.langgraph:CONNECTOR",
    "langsmith": "counterplay.connectors.langsmith:CONNECTOR",
    "logfire": "counterplay.connectors.logfire:CONNECTOR",
    "managed-agents": "counterplay.connectors.managed_agents:CONNECTOR",
    "mini-swe-agent": "counterplay.connectors.mini_swe_agent:CONNECTOR",
    "mlflow": "counterplay.connectors.mlflow:CONNECTOR",
    "moatless": "counterplay.connectors.moatless:CONNECTOR",
    "openai-agents": "counterplay.connectors.openai_agents:CONNECTOR",
    "openhands": "counterplay.connectors.openhands:CONNECTOR",
    "otlp": "counterplay.connectors.otlp:CONNECTOR",
    "phoenix": "counterplay.connectors.phoenix:CONNECTOR",
    "prm-data": "counterplay.connectors.prm_data:CONNECTOR",
    "swe-agent": "counterplay.connectors.swe_agent:CONNECTOR",
    "tape": "counterplay.connectors.tape:CONNECTOR",
    "tau-bench": "counterplay.connectors.tau_bench:CONNECTOR",
    "tau2": "counterplay.connectors.tau2:CONNECTOR",
    "toolbench": "counterplay.connectors.toolbench:CONNECTOR",
    "weave": "counterplay.connectors.weave:CONNECTOR",
}
_PROSE = {"", ".md", ".txt", ".rst", ".html", ".csv", ".tsv", ".py", ".sh", ".toml", ".yaml", ".yml", ".lock"}


@runtime_checkable
class Connector(Protocol):
    """One log format. A module or an object with these three attributes is a connector; there is no base class."""

    name: str

    def detect(self, sample: bytes, path: Path) -> float:
        """How sure it is that a file is of this format, in [0, 1], from its first bytes (uncompressed, no BOM).

        0 means that it is not. The name in `path` may raise a doubt or settle a tie; it never decides alone. Never raises.
        """
        ...

    def read(self, path: Path) -> AsyncIterator[Item]:
        """Every trace of a file, and a Rejected for everything in it that can't be one. An async generator.

        Raises SourceError where the file as a whole can't be read; nothing else.
        """
        ...


@runtime_checkable
class FolderConnector(Connector, Protocol):
    """A format whose traces may be spread over several files: of a folder it is given all its files at once."""

    def read_files(self, paths: Sequence[Path]) -> AsyncIterator[Item]:
        """As `read`, for files that belong together; a file that can't be read is one Rejected (see `entries_of`)."""
        ...


@runtime_checkable
class Separate(Protocol):
    """A format some of whose records are whole traces: a file of nothing else needs no other, and may be read on from where it ended."""

    def is_separate(self, trace: Trace) -> bool:
        """Whether one record was all of a trace that this connector gave."""
        ...


class _Registry(Mapping[str, Connector]):
    """Known connectors by name, built-in and from entry points. Each is imported when it is first asked for."""

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({**_BUILTIN, **_plugins()}))

    def __len__(self) -> int:
        return len({**_BUILTIN, **_plugins()})

    def __getitem__(self, name: str) -> Connector:
        return _load(name)


CONNECTORS: Mapping[str, Connector] = _Registry()


def get(name: str) -> Connector:
    """The connector of that name. Raises UserError where there is none, or where it can't be imported."""
    if name not in set(CONNECTORS):
        raise UserError(f"got log format {name!r}", f"auto or one of {', '.join(CONNECTORS)}", f"Plugins: entry point group {GROUP}.")
    try:
        return CONNECTORS[name]
    except Exception as error:  # plugin code may raise anything at import
        raise UserError(
            f"the connector {name!r} can't be loaded ({type(error).__name__}: {error})", "", "Repair or uninstall it."
        ) from error


def detect(path: Path) -> Connector:
    """The connector that is surest of a file. Raises SourceError where none is: what was seen, what is known, what to do."""
    sample = sample_of(path)
    ranked = sorted(((_confidence(name, sample, path), name) for name in CONNECTORS), key=lambda found: (-found[0], found[1]))
    if ranked and ranked[0][0] > 0:
        return get(ranked[0][1])
    raise SourceError(
        f"got {path}, {_seen(sample)}",
        f"a log in one of the formats {', '.join(CONNECTORS)}",
        f"Name it with --format if you know it, or write a connector (entry point group {GROUP}).",
    )


@dataclass(frozen=True)
class Unit:
    """Files that one connector reads together. `alone`: the user gave this one file, so that what is wrong with it is an error."""

    connector: str
    files: tuple[Path, ...]
    alone: bool = False


def units(paths: Iterable[Path], format: str = "auto") -> tuple[list[Unit], list[Rejected]]:  # noqa: A002  the word users type
    """How files and, recursively and in name order, folders are to be read, and what in the folders can't be.

    `format` is `auto` or a connector's name. In a folder hidden files are passed over, so is prose under a document's name
    (README, .md, .txt); any other file that no connector knows is a Rejected. Given by name, such a file raises SourceError; so do
    a missing path, an empty folder and a file that is not of the format that was named.
    """
    chosen = None if format == "auto" else get(format)
    given: dict[str, list[Path]] = {}
    found: list[Unit] = []
    rejected: list[Rejected] = []
    for path in map(Path, paths):
        if path.is_dir():
            groups, bad = sorted_out(files_in(path), format)
            found += [unit for name, files in groups.items() for unit in _grouped(name, files, alone=False)]
            rejected += bad
            continue
        connector = chosen or detect(path)
        if chosen:
            _check_format(path, chosen)
        given.setdefault(connector.name, []).append(path)
    return [*(unit for name, files in given.items() for unit in _grouped(name, files, alone=True)), *found], rejected


async def read_unit(unit: Unit) -> AsyncIterator[Item]:
    """Every trace and every rejected input of a unit. Raises SourceError where the one file that the user gave can't be read.

    A connector that fails is a Rejected with the error's name: what it gave before stays, and other units go on.
    """
    connector = get(unit.connector)
    together = len(unit.files) > 1 and isinstance(connector, FolderConnector)
    for files in [unit.files] if together else [(file,) for file in unit.files]:
        try:
            found = connector.read_files(files) if together and isinstance(connector, FolderConnector) else connector.read(files[0])
            async for item in found:
                yield item
        except SourceError as error:
            if unit.alone:
                raise
            yield Rejected(str(files[0]), str(error))
        except Exception as error:  # noqa: BLE001  the one boundary round connectors, which anybody may write
            reason = f"the connector {unit.connector} failed here, which is a defect of its own ({type(error).__name__}: {error})"
            yield Rejected(str(files[0]), reason)


async def ingest_items(path: Path, format: str = "auto") -> AsyncIterator[Item]:  # noqa: A002  the word users type
    """Every trace and every rejected input of a file or folder: see `units` and `read_unit`."""
    found, rejected = units([path], format)
    for row in rejected:
        yield row
    for unit in found:
        async for item in read_unit(unit):
            yield item


def trace_id(format: str, trajectory: Trajectory, *source_ids: str | None) -> str:  # noqa: A002
    """A trace id from the ids its source gave (None where it gave none) and its content, never from where the file lies.

    The same run read from another path is the same trace; equal runs without ids of their own are one trace.
    """
    return content_key("trace", format, trajectory.key, *("-" if part is None else f"={part}" for part in source_ids))


def source_trace_id(format: str, *source_ids: str) -> str:  # noqa: A002
    """A trace id from ids that no other trace has: a trace that has grown since it was last read is another revision of the same one."""
    return content_key("trace", format, *(f"={part}" for part in source_ids))


def _grouped(name: str, files: Sequence[Path], *, alone: bool) -> list[Unit]:
    """One unit where the connector joins files, else one a file."""
    if isinstance(get(name), FolderConnector):
        return [Unit(name, tuple(files), alone and len(files) == 1)]
    return [Unit(name, (file,), alone) for file in files]


def files_in(folder: Path) -> list[Path]:
    """The files of a folder and those below it in name order, without hidden ones. Raises SourceError where there is none."""
    files = _files(folder)
    if not files:
        raise SourceError(f"got the folder {folder}, which holds no files", "log files", "Check the path.")
    return files


def sorted_out(files: Iterable[Path], format: str = "auto") -> tuple[dict[str, list[Path]], list[Rejected]]:  # noqa: A002
    """Files by the name of the connector that reads them, and those that none can read; prose is passed over."""
    chosen = None if format == "auto" else get(format)
    groups: dict[str, list[Path]] = {}
    rejected: list[Rejected] = []
    for file in files:
        try:
            connector = chosen or detect(file)
            if chosen:
                _check_format(file, chosen)
            groups.setdefault(connector.name, []).append(file)
        except SourceError as error:
            if not _is_prose(file):
                rejected.append(Rejected(str(file), str(error)))
    return groups, rejected


def _files(folder: Path) -> list[Path]:
    found = (file for file in folder.rglob("*") if not any(part.startswith(".") for part in file.relative_to(folder).parts))
    return sorted(file for file in found if not file.is_dir() and not _is_side_file(file))


def _is_side_file(file: Path) -> bool:
    """A part of the SQLite database beside it, which is read with it."""
    name, dash, kind = file.name.rpartition("-")
    return bool(dash) and kind in ("wal", "shm", "journal") and file.with_name(name).is_file()


def _is_prose(file: Path) -> bool:
    """Text under a document's name that does not begin like JSON: no log, and no loss to pass over."""
    if file.suffix.lower() not in _PROSE:
        return False
    try:
        sample = sample_of(file, 4096)
    except SourceError:
        return False
    return b"\0" not in sample and sample.lstrip()[:1] not in (b"{", b"[", b"")


def _check_format(path: Path, connector: Connector) -> None:
    sample = sample_of(path)
    if connector.detect(sample, path) > 0:
        return
    others = [name for name in CONNECTORS if name != connector.name and _confidence(name, sample, path) > 0]
    do = f"It looks like {others[0]}: use --format {others[0]} or auto." if others else "Check the file, or try --format auto."
    raise SourceError(f"got {path}, {_seen(sample)}", f"a {connector.name} log", do)


def _confidence(name: str, sample: bytes, path: Path) -> float:
    try:
        connector = CONNECTORS[name]
    except Exception as error:  # noqa: BLE001  one broken plugin must not keep the others from their files
        warnings.warn(f"the connector {name!r} can't be loaded and is passed over: {error!r}", RuntimeWarning, stacklevel=2)
        return 0.0
    return min(1.0, max(0.0, connector.detect(sample, path)))


def _seen(sample: bytes) -> str:
    if not sample.strip():
        return "which is empty, or damaged from its beginning"
    if b"\0" in sample[:8192] and sample.lstrip()[:1] not in (b"{", b"["):
        return "which is a binary file of no known kind"
    objects = leading_objects(sample, 1)
    if objects:
        return f"JSON whose first record has the fields {', '.join(list(objects[0])[:8]) or '(none)'}"
    if sample.lstrip()[:1] == b"[":
        return f"JSON whose records are no objects and begin with {sample.lstrip()[:40].decode(errors='replace')!r}"
    return f"text that is not JSON and begins with {sample[:40].decode(errors='replace')!r}"


@cache
def _plugins() -> Mapping[str, str]:
    return {point.name: point.value for point in entry_points(group=GROUP)}


@cache
def _load(name: str) -> Connector:
    module, _, attribute = {**_plugins(), **_BUILTIN}[name].partition(":")
    loaded = import_module(module)
    for part in filter(None, attribute.split(".")):
        loaded = getattr(loaded, part)
    return cast("Connector", loaded)

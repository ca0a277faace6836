"""What an environment is made of: package versions, code, data, and each tool's definition and source.

Stored with what is recorded and searched, and compared before anything is played again, so that an environment that has
moved on since is noticed first, tool by tool and trace by trace. Digests are of content: the same code and data give the
same fingerprint on every machine.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import CodeType
from typing import Any, Literal, Protocol, Self, TypeAlias

from counterplay.core.canonical import canonical, content_key, loads
from counterplay.core.errors import UserError
from counterplay.core.nouns import ToolSpec, Trace

Data: TypeAlias = Mapping[str, str | Path | Callable[[], Any]]
Kind: TypeAlias = Literal["package", "code", "data", "definition", "source", "declared"]
_WORDS: Mapping[str, str] = {
    "package": "package {name}",
    "code": "the code of {name}",
    "data": "data {name}",
    "definition": "the definition of tool {name}",
    "source": "the source of tool {name}",
    "declared": "the version that {name} declares",
}
_KEY = "environment"


class HasTools(Protocol):
    """A world, as far as its fingerprint is concerned."""

    @property
    def tools(self) -> Sequence[ToolSpec]: ...


@dataclass(frozen=True)
class Fingerprint:
    """Digests by name, 32 hex digits each; `packages` holds versions. What could not be had is not in it, which is not a difference.

    `definitions` are the tools as a model is shown them, `sources` the functions behind them, `declared` what the world says of itself.
    """

    packages: Mapping[str, str] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    definitions: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    declared: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """All of it as one digest."""
        return content_key("environment", canonical(self.to_record()))

    def to_record(self) -> dict[str, dict[str, str]]:
        """Plain JSON, for the metadata of a trace or the config of a search."""
        return {name: dict(part) for name in _PARTS if (part := getattr(self, name))}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read `to_record`. Anything in it that is not a table of texts is left out."""
        tables = {name: record.get(name) for name in _PARTS}
        return cls(**{name: {str(k): str(v) for k, v in part.items()} for name, part in tables.items() if isinstance(part, Mapping)})

    @classmethod
    def of_trace(cls, trace: Trace) -> Self:
        """What a trace knows of its environment: what its recorder stored, else the tool definitions that were sent; else nothing."""
        stored = trace.metadata.get(_KEY)
        if isinstance(stored, Mapping) and set(stored) & set(_PARTS):
            return cls.from_record(stored)
        return cls(definitions=_definitions(trace.trajectory.tools))


_PARTS = ("packages", "code", "data", "definitions", "sources", "declared")
_KIND_OF: Mapping[str, Kind] = {
    "packages": "package",
    "code": "code",
    "data": "data",
    "definitions": "definition",
    "sources": "source",
    "declared": "declared",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not what it was. `was` or `now` is None where it was not there; `str` says it in words."""

    kind: Kind
    name: str
    was: str | None
    now: str | None

    def __str__(self) -> str:
        what = _WORDS[self.kind].format(name=self.name)
        if self.was is None:
            return f"{what} is new"
        if self.now is None:
            return f"{what} is gone"
        return f"{what} is {self.now}, was {self.was}" if self.kind in ("package", "declared") else f"{what} changed"


def environment_fingerprint(
    world: HasTools, *, packages: Iterable[str] = (), data: Data | None = None, sources: Mapping[str, Any] | None = None
) -> Fingerprint:
    """The fingerprint of a world as it is installed here.

    `packages` names packages and modules (`tau_bench.envs.airline`): their distribution's version and the digest of their Python files
    enter, those of the world's own module always. `data` maps names to files, folders, or functions that return JSON data. `sources`
    maps tools to the functions or classes behind them; by default methods of the world that bear a tool's name. A world's own
    `environment`, where it is a Fingerprint, is taken instead. Raises UserError where a package or a file does not exist.
    """
    own = getattr(world, _KEY, None)
    if isinstance(own, Fingerprint):
        return own
    kind = type(world)
    names = list(dict.fromkeys(packages))
    code = {name: _package_digest(name) for name in names}
    if not any(kind.__module__ == name or kind.__module__.startswith(f"{name}.") for name in names):
        code |= _module_digest(kind)
    declared = getattr(world, "fingerprint", None)
    return Fingerprint(
        packages={top: version for top in dict.fromkeys(name.partition(".")[0] for name in names) if (version := _version(top))},
        code=code,
        data={name: _data_digest(what) for name, what in (data or {}).items()},
        definitions=_definitions(world.tools),
        sources=_sources(world, sources or {}),
        declared={f"{kind.__module__}.{kind.__qualname__}": declared} if isinstance(declared, str) else {},
    )


def drift(recorded: Fingerprint, now: Fingerprint) -> tuple[Difference, ...]:
    """Everything that differs, in a fixed order. A part that one side knows nothing of is no difference."""
    found = []
    for part in _PARTS:
        was, is_now = getattr(recorded, part), getattr(now, part)
        if was and is_now:
            names = sorted({*was, *is_now})
            found += [Difference(_KIND_OF[part], n, was.get(n), is_now.get(n)) for n in names if was.get(n) != is_now.get(n)]
    return tuple(found)


def trace_drift(trace: Trace, now: Fingerprint) -> tuple[Difference, ...]:
    """The differences that concern one trace: those in tools that it never called are left out, and so are new tools."""
    called = {call.name for step in trace.trajectory.steps for call in step.action.tool_calls}
    called |= {call.name for sub in trace.sub_trajectories for step in sub.trajectory.steps for call in step.action.tool_calls}
    return tuple(d for d in drift(Fingerprint.of_trace(trace), now) if d.kind not in ("definition", "source") or d.name in called)


def drift_of(traces: Iterable[Trace], made_of: Callable[[Trace], Fingerprint]) -> dict[str, tuple[str, ...]]:
    """What has drifted, in words, each with the ids of the traces that it concerns; the most frequent first. Empty: nothing is known to.

    `made_of` gives the fingerprint of the world that a trace would be played in. Nothing is played.
    """
    found: dict[str, list[str]] = {}
    for trace in traces:
        for difference in trace_drift(trace, made_of(trace)):
            found.setdefault(str(difference), []).append(trace.id)
    return {words: tuple(ids) for words, ids in sorted(found.items(), key=lambda item: -len(item[1]))}


def _definitions(tools: Iterable[ToolSpec]) -> dict[str, str]:
    return {tool.name: _definition_digest(tool.wire) for tool in tools}


@lru_cache(maxsize=4096)
def _definition_digest(wire: str) -> str:
    return content_key(canonical(loads(wire)))


def _sources(world: HasTools, given: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the functions or classes behind the tools, where their source can be had."""
    found = {}
    for tool in world.tools:
        behind = given.get(tool.name) or getattr(type(world), tool.name, None) or getattr(type(world), f"_{tool.name}", None)
        digest = source_digest(behind)
        if digest is not None:
            found[tool.name] = digest
    return found


def source_digest(behind: object) -> str | None:
    """The digest of a function's or a class's source; None where it can't be had."""
    code = behind if isinstance(behind, type) else getattr(inspect.unwrap(behind), "__code__", None) if callable(behind) else None
    return None if code is None else _source_digest(code)


@lru_cache(maxsize=4096)
def _source_digest(code: CodeType | type) -> str | None:
    try:
        return content_key(inspect.getsource(code).replace("\r\n", "\n"))
    except (OSError, TypeError):
        return None


def _version(package: str) -> str | None:
    """The version of the distribution that a top-level package comes from; None where it is not installed as one."""
    return _version_of(package) or _version_of(_distributions().get(package, [""])[0])


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution) if distribution else None
    except importlib.metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _module_digest(kind: type) -> dict[str, str]:
    """The world's own module; nothing where it has no file, as at a prompt."""
    try:
        path = inspect.getsourcefile(kind)
    except TypeError:
        path = None
    return {kind.__module__: _file_digest(Path(path))} if path is not None and Path(path).is_file() else {}


def _package_digest(name: str) -> str:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise UserError(
            f"got package {name!r} for the fingerprint of an environment, which can't be found", "an importable package or module"
        )
    if spec.submodule_search_locations:
        return content_key(*(_tree_digest(Path(folder), "*.py") for folder in spec.submodule_search_locations))
    return _file_digest(Path(spec.origin)) if spec.origin and Path(spec.origin).is_file() else content_key(spec.origin or "")


def _data_digest(what: str | Path | Callable[[], Any]) -> str:
    if callable(what):
        return content_key(canonical(what()))
    path = Path(what)
    if path.is_dir():
        return _tree_digest(path, "*")
    if not path.is_file():
        raise UserError(f"got {path} as data of an environment, which does not exist", "a file, a folder, or a function")
    return _file_digest(path)


def _tree_digest(folder: Path, pattern: str) -> str:
    files = sorted(path for path in folder.rglob(pattern) if path.is_file() and "__pycache__" not in path.parts)
    return content_key(*(part for path in files for part in (path.relative_to(folder).as_posix(), _file_digest(path))))


def _file_digest(path: Path) -> str:
    stat = path.stat()
    return _read_digest(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _read_digest(path: Path, modified_ns: int, size: int) -> str:  # noqa: ARG001  they say when a file must be read again
    data = path.read_bytes()
    return content_key((data.replace(b"\r\n", b"\n") if path.suffix == ".py" else data).decode("latin-1"))

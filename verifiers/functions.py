"""Functions and dataclasses as verifiers whose name, version and settings come by themselves.

`@verifier` fills in what is missing of `name`, `version` and `fingerprint`. The version it gives is a digest of what the code does:
it changes with the code and with the helpers and constants of its own package, and not with comments, docstrings or layout.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from hashlib import blake2b
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePath
from types import CodeType, FunctionType
from typing import Any, TypeVar, cast, overload

from counterplay.core.canonical import content_key
from counterplay.core.nouns import Trajectory
from counterplay.core.protocols import Batch, Opinion, fingerprint_of

T = TypeVar("T", bound=Callable[..., Any])
Many = Callable[[Sequence[Trajectory]], "Sequence[Opinion | Exception] | Awaitable[Sequence[Opinion | Exception]]"]

_LONG = 120


@overload
def verifier(target: T, /) -> T: ...
@overload
def verifier(target: None = None, /, *, name: str = "", version: str = "") -> Callable[[T], T]: ...
def verifier(target: Any = None, /, *, name: str = "", version: str = "") -> Any:
    """Give a function, or a class whose instances are called, what a verifier is known by.

    `name` defaults to its own name and `version` to `behaviour(target)`. Instances of a dataclass carry their fields in `fingerprint`,
    save those declared with `compare=False` (clients, caches), so that two settings are never taken for one another.
    Raises TypeError, when the fingerprint is asked for, where a field has no text of its own that is the same in every process.
    """
    if target is None:
        return lambda given: _named(given, name, version)
    return _named(target, name, version)


def _named(target: Any, name: str, version: str) -> Any:
    own = vars(target)
    target.name = name or own.get("name") or target.__name__
    target.version = version or own.get("version") or behaviour(target)
    if inspect.isclass(target) and "fingerprint" not in own:
        cast("Any", target).fingerprint = property(settings)
    return target


class Batched:
    """A verifier made of a function of many trajectories; alone, a trajectory is a batch of one."""

    def __init__(self, function: Many, name: str, version: str) -> None:
        self.function, self.name, self.version = function, name, version
        self.__doc__ = function.__doc__

    @property
    def batch(self) -> Batch:
        return self.function

    async def __call__(self, trajectory: Trajectory, /) -> Opinion:
        given = self.function([trajectory])
        (answer,) = await given if inspect.isawaitable(given) else given
        if isinstance(answer, Exception):
            raise answer
        return answer


def batched(*, name: str = "", version: str = "") -> Callable[[Many], Batched]:
    """Make a verifier of a function that answers many trajectories at once, sync or async: opinions in their order, one each."""
    return lambda function: Batched(function, name or _name(function), version or behaviour(function))


def settings(instance: Any) -> str:
    """Name, version and the settings of a verifier: its dataclass fields, or, of any other object, nothing more."""
    known = f"{instance.name}@{instance.version}"
    if not is_dataclass(instance):
        return known
    told = [f"{field.name}={_text(getattr(instance, field.name), field.name)}" for field in fields(instance) if field.compare]
    return f"{known}({', '.join(told)})"


def behaviour(target: Any) -> str:
    """8 hex digits of what a function or class does: its code as the parser prints it, what it closes over, and what it uses.

    Comments, docstrings and layout do not count. The functions, classes and constants of its own top-level package do, wherever they
    stand; what it imports from elsewhere counts by name, and what is read from files not at all. Without source (typed in, generated)
    it is the bytecode of the target alone.
    """
    target = target if inspect.isclass(target) or inspect.isfunction(target) else type(target)
    told = _Told(str(getattr(target, "__module__", "")))
    told.target(inspect.unwrap(target))
    return blake2b("\n".join(sorted(told.parts)).encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()


class _Told:
    """The code that makes up a behaviour, found from name to name through the modules of one top-level package."""

    def __init__(self, module: str) -> None:
        self.module, self.home = module, module.partition(".")[0]
        self.parts: set[str] = set()
        self._seen: set[tuple[str, str]] = set()
        self._modules: dict[str, dict[str, list[ast.stmt]]] = {}

    def target(self, target: Any) -> None:
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(target)))
        except (OSError, TypeError, SyntaxError):
            self.parts.update(_bytecode(function.__code__) for function in _functions(target))
            return
        self._add(tree, self.module)
        for function in _functions(target):
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
                self.parts.add(f"{name}={_closed_over(cell)}")

    def _add(self, tree: ast.AST, module: str) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                node.decorator_list = []
                if ast.get_docstring(node, clean=False) is not None:
                    node.body = node.body[1:] or [ast.Pass()]
        self.parts.add(ast.unparse(tree))
        within = _defined(node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                self._name(node.id, module)
                self._follow(within.get(node.id, ()), node.id, module)
            elif isinstance(node, ast.Attribute):
                self._attribute(node, module, within)

    def _name(self, name: str, module: str) -> None:
        if (module, name) in self._seen:
            return
        self._seen.add((module, name))
        self._follow(self._definitions(module).get(name, ()), name, module)

    def _follow(self, definitions: Iterable[ast.stmt], name: str, module: str) -> None:
        for node in definitions:
            if isinstance(node, ast.ImportFrom):
                origin = _origin(node, module)
                if self._at_home(origin):
                    self._name(_original(node, name), origin)
            elif not isinstance(node, ast.Import):
                self._add(node, module)

    def _attribute(self, node: ast.Attribute, module: str, within: Mapping[str, Sequence[ast.stmt]]) -> None:
        """What `module.name` names, where the module is one of the package, however it was imported."""
        root, *names = _path(node)
        for made in (*self._definitions(module).get(root, ()), *within.get(root, ())):
            origin = _module(made, root, module)
            for name in names:
                if not self._at_home(origin):
                    break
                if name in self._definitions(origin) or _spec(f"{origin}.{name}") is None:
                    self._name(name, origin)
                    break
                origin = f"{origin}.{name}"

    def _at_home(self, module: str) -> bool:
        return module.partition(".")[0] == self.home

    def _definitions(self, module: str) -> dict[str, list[ast.stmt]]:
        """What each name of a module is made by, at its top level; empty where its source can't be had."""
        if module not in self._modules:
            try:
                tree = ast.parse(_source(module))
            except (OSError, TypeError, SyntaxError):
                tree = ast.Module([], [])
            self._modules[module] = _defined(_top_level(tree.body))
        return self._modules[module]


def _defined(nodes: Iterable[ast.stmt]) -> dict[str, list[ast.stmt]]:
    """The statements that make each name."""
    found: dict[str, list[ast.stmt]] = {}
    for node in nodes:
        for name in _bound(node):
            found.setdefault(name, []).append(node)
    return found


def _top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from _top_level(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt))
        else:
            yield node


def _bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    if isinstance(node, ast.Import):
        return [alias.asname or alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return [name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)]
    return []


def _original(node: ast.ImportFrom, name: str) -> str:
    return next((alias.name for alias in node.names if (alias.asname or alias.name) == name), name)


def _origin(node: ast.ImportFrom, module: str) -> str:
    """The module that names are imported from; empty where it is relative to none."""
    spec = _spec(module)
    package = spec.parent if spec is not None and spec.parent else module.rpartition(".")[0]
    if node.level and not package:
        return ""
    return importlib.util.resolve_name("." * node.level + (node.module or ""), package)


def _module(made: ast.stmt, name: str, module: str) -> str:
    """The module that `name` is where this import makes it; empty where no import does."""
    if isinstance(made, ast.Import):
        return next((alias.name for alias in made.names if alias.asname == name), name)
    return f"{_origin(made, module)}.{_original(made, name)}" if isinstance(made, ast.ImportFrom) else ""


def _path(node: ast.Attribute) -> list[str]:
    """The names in `a.b.c`; one that is empty where it begins with none."""
    names, value = [node.attr], node.value
    while isinstance(value, ast.Attribute):
        names.append(value.attr)
        value = value.value
    return [value.id, *reversed(names)] if isinstance(value, ast.Name) else [""]


def _spec(module: str) -> ModuleSpec | None:
    """Where a module is; nothing is imported for it, so that it is told the same before it was used as after."""
    if module in sys.modules:
        return getattr(sys.modules[module], "__spec__", None)
    above = _spec(module.rpartition(".")[0]) if "." in module else None
    if above is None or above.submodule_search_locations is None:
        return None
    found = (finder.find_spec(module, above.submodule_search_locations, None) for finder in sys.meta_path)
    return next((spec for spec in found if spec is not None), None)


def _source(module: str) -> str:
    """Raises OSError where there is none."""
    if module in sys.modules:
        return inspect.getsource(sys.modules[module])
    spec = _spec(module)
    return importlib.util.decode_source(Path(spec.origin or "").read_bytes()) if spec is not None else ""


def _functions(target: Any) -> list[FunctionType]:
    members = vars(target).values() if inspect.isclass(target) else [target]
    bare = (getattr(member, "__func__", getattr(member, "fget", member)) for member in members)
    return [inspect.unwrap(member) for member in bare if isinstance(member, FunctionType) and member.__module__ == target.__module__]


def _closed_over(cell: Any) -> str:
    try:
        return _text(cell.cell_contents, "closure")
    except TypeError:
        return type(cell.cell_contents).__qualname__
    except ValueError:  # not filled yet: the function itself, or what is defined after it
        return ""


def _bytecode(code: CodeType) -> str:
    constants = [_bytecode(constant) if isinstance(constant, CodeType) else _plain(constant, "constant") for constant in code.co_consts]
    return f"{code.co_code.hex()}{code.co_names}{constants}"


def _name(function: object) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _text(value: Any, where: str) -> str:
    """One setting as text that is the same in every process; a digest of what is long."""
    text = _plain(value, where)
    return text if len(text) <= _LONG else f"#{content_key(text)}"


def _plain(value: Any, where: str) -> str:  # noqa: PLR0911  one kind a line
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | PurePath):
        return str(value) if isinstance(value, PurePath) else repr(value)
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{_plain(k, where)}: {_plain(v, where)}' for k, v in value.items()))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_plain(item, where) for item in value)}]"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(_plain(item, where) for item in value))}}}"
    if isinstance(getattr(value, "fingerprint", None), str) or isinstance(value, FunctionType | type) or hasattr(value, "version"):
        return fingerprint_of(value)
    if is_dataclass(value):
        return f"{type(value).__qualname__}({', '.join(f'{f.name}={_plain(getattr(value, f.name), where)}' for f in fields(value))})"
    if " at 0x" not in (text := repr(value)):
        return text
    msg = f"got setting {where!r}, a {type(value).__name__} without a text of its own; give it a `fingerprint`, or declare it compare=False"
    raise TypeError(msg)

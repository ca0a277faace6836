"""Functions of other libraries that are replaced while at least one run is active, and put back after the last.

A library that is not imported is not imported for this: its functions are replaced when an agent imports it. Where someone
else has wrapped a replaced function in the meantime, ours stays below theirs, and does nothing outside of a run.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeAlias

Wrap: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Patch:
    """Replace `module.owner.attribute` by what `wrap` makes of it; without an owner, the module's own attribute.

    `wrap` is a function or `module:function`, which is loaded when the patched module is there.
    """

    module: str
    owner: str
    attribute: str
    wrap: Wrap | str


@dataclass(frozen=True)
class _Replaced:
    holder: Any
    attribute: str
    original: Any
    replacement: Any
    own: bool


class Patches:
    """A set of patches that is installed and taken out as a whole. Safe to use from several threads."""

    def __init__(self, patches: Iterable[Patch]) -> None:
        self._by_module: dict[str, list[Patch]] = {}
        for patch in patches:
            self._by_module.setdefault(patch.module, []).append(patch)
        self._lock = threading.RLock()
        self._installed: dict[tuple[int, str], _Replaced] = {}
        self._users = 0
        self._finder = _Finder(self._by_module, self._imported)

    def install(self) -> None:
        """Once more: patches stay until `uninstall` was called as often."""
        for name in self._by_module:
            spec = getattr(sys.modules.get(name), "__spec__", None)
            if getattr(spec, "_initializing", False):
                importlib.import_module(name)  # waits for the thread that is importing it
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
            for name in self._by_module:
                if name in sys.modules:
                    self._apply(name)
            sys.meta_path.insert(0, self._finder)

    def uninstall(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
            if self._finder in sys.meta_path:
                sys.meta_path.remove(self._finder)
            while self._installed:
                _restore(self._installed.popitem()[1])

    def replace(self, holder: Any, attribute: str, wrap: Wrap) -> None:
        """One more replacement, of what was found at a call, until all are taken out. Does nothing where it is there already."""
        place = (id(holder), attribute)
        if place in self._installed:
            return
        with self._lock:
            if self._users and place not in self._installed:
                self._installed[place] = _replace(holder, attribute, wrap)

    def _imported(self, name: str) -> None:
        with self._lock:
            if self._users:
                self._apply(name)

    def _apply(self, name: str) -> None:
        module = sys.modules[name]
        for patch in self._by_module[name]:
            holder = getattr(module, patch.owner, None) if patch.owner else module
            if hasattr(holder, patch.attribute):
                self.replace(holder, patch.attribute, _loaded(patch.wrap))


def _loaded(wrap: Wrap | str) -> Wrap:
    if not isinstance(wrap, str):
        return wrap
    module, _, function = wrap.partition(":")
    found: Wrap = getattr(importlib.import_module(module), function)
    return found


def _replace(holder: Any, attribute: str, wrap: Wrap) -> _Replaced:
    own = attribute in vars(holder)
    original = getattr(holder, attribute)
    replacement = wrap(original)
    setattr(holder, attribute, replacement)
    return _Replaced(holder, attribute, original, replacement, own)


def _restore(done: _Replaced) -> None:
    if vars(done.holder).get(done.attribute) is not done.replacement:
        return
    if done.own:
        setattr(done.holder, done.attribute, done.original)
    else:
        delattr(done.holder, done.attribute)


class _Finder:
    """Finds nothing itself: it lets the other finders find, and tells when one of the watched modules has been loaded."""

    def __init__(self, names: Iterable[str], imported: Callable[[str], None]) -> None:
        self._names, self._imported = frozenset(names), imported

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._names:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                self._watch(spec)
                return spec
        return None

    def _watch(self, spec: ModuleSpec) -> None:
        load: Any = getattr(spec.loader, "exec_module", None)

        def exec_module(module: ModuleType) -> None:
            load(module)
            self._imported(spec.name)

        if load is not None:
            spec.loader.exec_module = exec_module  # type: ignore[union-attr, method-assign]

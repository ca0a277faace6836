"""Finding verifiers: built in, installed as plugins (entry points in the group `counterplay.verifiers`), or named `module:attr`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, cast

from counterplay.core.errors import UserError
from counterplay.core.journal import verifier_identity
from counterplay.core.loading import resolve
from counterplay.core.protocols import Verifier

GROUP = "counterplay.verifiers"
BUILT_IN = {
    "outcome": "counterplay.verifiers.outcome:outcome",
    "tool_calls": "counterplay.verifiers.packs.tool_calls:ToolCallRules",
    "ledger": "counterplay.verifiers.packs.ledger:LedgerRules",
    "tools": "counterplay.verifiers.packs.tools:ToolUse",
    "double_entry": "counterplay.verifiers.packs.ledger_books:DoubleEntry",
    "grounded": "counterplay.verifiers.packs.text:Grounded",
    "citations": "counterplay.verifiers.packs.text:Citations",
    "repetition": "counterplay.verifiers.packs.length:Repetition",
    "unit_tests": "counterplay.verifiers.packs.code:UnitTests",
    "compiles": "counterplay.verifiers.packs.code:Compiles",
    "lints": "counterplay.verifiers.packs.code:Lints",
    "patch_similarity": "counterplay.verifiers.packs.code:PatchSimilarity",
    "sql": "counterplay.verifiers.packs.sql:SqlRewards",
}
TABLES = {
    "policy": "counterplay.verifiers.packs.policy:PolicyRules.from_toml",
    "double_entry": "counterplay.verifiers.packs.ledger_books:DoubleEntry.from_toml",
}
"""Verifiers that are made from a table, `policy:FILE.toml`, and who reads it."""
SPELLED = {
    "judge": "counterplay.verifiers.judges.spec:from_spec",
    "prm": "counterplay.verifiers.learned.specs:load",
    "implicit-prm": "counterplay.verifiers.learned.specs:load",
}
"""Names that say what a verifier is made of, such as `judge:MODEL?mode=step` or `prm:FOLDER`, and who reads them."""

FORMS = {
    "policy": "policy:FILE.toml",
    "double_entry": "double_entry:FILE.toml",
    "judge": "judge:MODEL",
    "prm": "prm:FOLDER",
    "implicit-prm": "implicit-prm:POLICY,REFERENCE",
}
"""How the names of `TABLES` and `SPELLED` are written."""


@dataclass(frozen=True, slots=True)
class Listing:
    """One verifier that can be named. `origin` is `built-in` or the distribution that ships it."""

    name: str
    target: str
    origin: str


def available() -> list[Listing]:
    """Every verifier that can be given by name, built-in ones first. Nothing is imported."""
    built_in = [Listing(name, target, "built-in") for name, target in BUILT_IN.items()]
    return built_in + [Listing(point.name, point.value, _distribution(point)) for point in _plugins()]


def forms() -> list[tuple[str, str]]:
    """Every form in which a name says what the verifier is made of, and who reads it."""
    return [(form, (TABLES | SPELLED)[kind]) for kind, form in FORMS.items()]


def load(spec: str) -> Verifier:
    """The verifier `spec` names: a known name, one of `TABLES` or `SPELLED`, or `module:attr`. A class is instantiated without arguments.

    Raises UserError where the name is unknown, the module can't be imported, or what it holds can't be called.
    """
    kind, colon, rest = spec.partition(":")
    if colon and kind in FORMS and not rest:
        raise UserError(f"got verifier {spec!r}", FORMS[kind])
    if colon and kind in TABLES:
        return _callable(resolve(TABLES[kind], "verifier")(Path(rest)), spec)
    if colon and kind in SPELLED:
        return _callable(resolve(SPELLED[kind], "verifier")(spec), spec)
    if colon:
        return _callable(resolve(spec, "verifier"), spec)
    if spec in BUILT_IN:
        return _callable(resolve(BUILT_IN[spec], "verifier"), spec)
    for point in _plugins():
        if point.name == spec:
            return _callable(_load_plugin(point), spec)
    known = [listing.name for listing in available()]
    close = difflib.get_close_matches(spec, [*known, *FORMS])
    hint = f"Did you mean {FORMS.get(close[0], close[0])}?" if close else "List them with: counterplay verifiers list"
    raise UserError(f"got verifier {spec!r}", f"one of {', '.join((*known, *FORMS.values()))}, or module:attr", hint)


def _plugins() -> Iterator[EntryPoint]:
    return iter(sorted(entry_points(group=GROUP), key=lambda point: point.name))


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "plugin"


def _load_plugin(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:
        got = f"verifier plugin {point.name!r} of {_distribution(point)} fails on import: {type(error).__name__}: {error}"
        raise UserError(got, "a plugin that imports", "Re-install it, or leave it out.") from error


def _callable(found: Any, spec: str) -> Verifier:
    if inspect.isclass(found):
        try:
            found = found()
        except TypeError as error:
            raise UserError(
                f"got verifier class {spec!r} that needs arguments: {error}", "a callable, or a class without required arguments"
            ) from error
    if not callable(found):
        raise UserError(f"got verifier {spec!r}, a {type(found).__name__}", "a callable of one trajectory")
    if not verifier_identity(found)[0]:
        raise UserError(f"got verifier {spec!r} without a name", "a function or an object with a `name`")
    return cast("Verifier", found)
